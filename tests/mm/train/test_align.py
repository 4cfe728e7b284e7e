"""A run is built with what its data says."""

from dataclasses import replace
from types import SimpleNamespace

import torch

from mm.config import AlignConfig
from mm.train.align import observed_tokens


def test_captions_are_read_for_their_tokens_where_a_run_needs_them(tiny: AlignConfig) -> None:
    own, observed = torch.tensor([7]), torch.tensor([3, 5])
    writes = replace(tiny, model=replace(tiny.model, generate=True))
    pretrained = SimpleNamespace(vocabulary=None, observed_vocabulary=lambda: observed)
    assert observed_tokens(writes, pretrained) is observed  # type: ignore[arg-type]
    assert observed_tokens(tiny, pretrained) is None  # type: ignore[arg-type]
    scratch = SimpleNamespace(vocabulary=own)
    assert observed_tokens(writes, scratch) is own  # type: ignore[arg-type]
