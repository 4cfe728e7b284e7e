"""One small run that writes, whose every part does something."""

from dataclasses import replace

import pytest
import torch

from mm.artifacts.run import Run, build_run
from mm.config import AlignConfig


@pytest.fixture
def writing_run(tiny: AlignConfig, vocabulary: torch.Tensor) -> Run:
    backbone = replace(tiny.model.backbone, layers=1)
    torch.manual_seed(0)
    model = replace(tiny.model, generate=True, direct=True, backbone=backbone)
    # Longer than any caption of the probe, which is then a part of a wider tensor.
    run = build_run(replace(tiny, model=model, text=replace(tiny.text, max_tokens=24)), vocabulary).eval()
    for block in run.model.backbone.blocks:
        # Cross-modal attention is zero-initialised: nothing of it would be seen.
        torch.nn.init.normal_(block.cross_attention.out_proj.weight, std=0.2)
        torch.nn.init.normal_(block.moe.router.bias, std=0.1)
    return run
