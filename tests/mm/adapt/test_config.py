"""What an adapted run takes from the run it adapts, and what from its own settings."""

from dataclasses import replace
from pathlib import Path

import pytest

from mm.adapt.config import ContinueConfig, DomainData, FinetuneConfig, adapted_config, described_data, folder_of
from mm.config import AlignConfig, OptimConfig
from mm.data.config import DataConfig
from mm.readers import Augment


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


def test_how_training_read_the_runs_own_set_ends_with_it(tiny: AlignConfig) -> None:
    had = DataConfig(root="own", augment=Augment(), captions=3, limit_images=20, limit_captions=2, workers=2, cache="c")
    own = replace(tiny, data=had, image=replace(tiny.image, fit="crop"))
    adapted = adapted_config(own, FinetuneConfig("runs/own", DomainData("molecules")))
    assert adapted.data == DataConfig(root="molecules", workers=2, cache="c") and adapted.image.fit == "crop"
    line = described_data(adapted, 48)
    assert "48 of 48 images, 1 a step of all captions" in line and "augment None" in line and "fit crop" in line


def test_a_domain_is_read_as_it_is_asked_for(tiny: AlignConfig) -> None:
    asked = DomainData(
        "molecules", augment=Augment(flip=True), captions=2, limit_images=9, limit_captions=1, fit="squash"
    )
    own = replace(tiny, image=replace(tiny.image, fit="crop"))
    adapted = adapted_config(own, ContinueConfig("runs/own", asked))
    for name in ("augment", "captions", "limit_images", "limit_captions"):
        assert getattr(adapted.data, name) == getattr(asked, name)
    assert adapted.image.fit == "squash"
    assert "9 of 48 images, 2 a step of the first 1 captions" in described_data(adapted, 48)


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
