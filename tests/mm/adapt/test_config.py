"""What an adapted run takes from the run it adapts, and what from its own settings."""

from dataclasses import replace
from pathlib import Path

import pytest

from mm.adapt.config import ContinueConfig, DomainData, FinetuneConfig, adapted_config, folder_of
from mm.config import AlignConfig, OptimConfig


@pytest.mark.parametrize(("asked", "expected"), [(None, 2), (1, 1), (3, 3)])
def test_a_domain_has_the_runs_views_unless_it_asks_for_others(
    tiny: AlignConfig, asked: int | None, expected: int
) -> None:
    own = replace(tiny, data=replace(tiny.data, views=2, karpathy="of the run's own set"))
    config = FinetuneConfig("runs/own", DomainData("molecules", views=asked), seed=1)
    adapted = adapted_config(own, config)
    assert (adapted.data.views, adapted.data.root, adapted.data.karpathy) == (expected, "molecules", None)
    assert (adapted.seed, adapted.train.devices, adapted.train.strategy) == (1, 1, "auto")
    assert adapted.model == own.model


def test_encoders_keep_the_rates_that_the_run_had_for_them(tiny: AlignConfig) -> None:
    """Those of an earlier adaptation, such as of term biases, end with it; what is asked for comes last."""
    had = {"encoders.text.trunk.*": 0.1, "encoders.image.trunk.*": 0.1, "*.term_bias": 100.0}
    own = replace(tiny, optim=OptimConfig(rates=had))
    asked = OptimConfig(rates={"encoders.image.trunk.*": 0.5, "backbone.*": 0.2})
    adapted = adapted_config(own, FinetuneConfig("runs/own", DomainData("molecules"), optim=asked))
    expected = [("encoders.text.trunk.*", 0.1), ("encoders.image.trunk.*", 0.5), ("backbone.*", 0.2)]
    assert list(adapted.optim.rates.items()) == expected


def test_the_default_name_says_what_was_done() -> None:
    config = ContinueConfig("runs/own", DomainData("data/molecules"))
    assert folder_of(config, "continued") == Path("runs/own_molecules_continued")
    assert folder_of(replace(config, name="mine", runs="elsewhere"), "continued") == Path("elsewhere/mine")
