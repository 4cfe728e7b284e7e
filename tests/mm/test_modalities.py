"""A modality is a row: a toy one is registered, aligned, trained and evaluated, and no other file knows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from encoders import BottleneckConfig, Encoder, Features
from encoders.base import Trunk
from encoders.vqvae import Bottleneck, FeatureDecoder
from mm.artifacts.run import build_run, load_run, save_run
from mm.batch import Sample
from mm.config import AlignConfig, encoders_of
from mm.data.module import AlignData
from mm.evaluation.retrieval import evaluate_split
from mm.modalities import MODALITIES, Modality, build_readers, pairs_of, probe_batch
from mm.readers import Augment
from mm.train.task import AlignTask
from mm.train.trainer import build_trainer, fit

CELLS = 4
"""The toy modality: the mean brightness of 4 × 4 cells of an image."""


@dataclass(frozen=True)
class LightConfig:
    trunk: str = "scratch"
    weights: str | None = None
    frozen: bool = False
    width: int = 8


class LightTrunk(Trunk):
    """brightness (N, 4, 4) -> tokens (N, 4, F): a row of cells is a token."""

    tokens = CELLS

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(CELLS, width)

    def forward(self, x: Tensor) -> Features:
        tokens = self.linear(x)
        return Features(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


class LightEncoder(Encoder):
    def __init__(self, config: LightConfig, bottleneck: BottleneckConfig, width: int) -> None:
        super().__init__()
        self.frozen_trunk = config.frozen
        self.trunk = LightTrunk(config.width)
        self.bottleneck = Bottleneck(bottleneck, config.width, width, CELLS)
        self.decoder = FeatureDecoder(bottleneck.quantizer.width, config.width)

    def features(self, inputs: Tensor, mask: Tensor | None = None) -> Features:
        return self.trunk(inputs)


class LightReader:
    source = "image"
    chances = 1

    def __init__(self, config: LightConfig) -> None:
        self.config = config

    def settings(self) -> dict[str, Any]:
        return {}

    def decode(self, sample: Sample) -> np.ndarray | None:
        if sample.image is None:
            return None
        return adaptive_avg_pool2d(sample.image.float().mean(0)[None], CELLS)[0].numpy() / 255

    def evaluate(self, decoded: np.ndarray) -> np.ndarray:
        return decoded

    def augment(self, decoded: np.ndarray, augment: Augment | None, chance: np.ndarray) -> np.ndarray:
        return decoded * (0.9 + 0.1 * np.float32(chance[0]))

    def stack(self, rows: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor | None]:
        absent = np.zeros((CELLS, CELLS), np.float32)
        return torch.from_numpy(np.stack([absent if row is None else row for row in rows])), None


def probe_light(config: LightConfig) -> tuple[Tensor, Tensor | None]:
    return torch.linspace(0, 1, 3 * CELLS * CELLS).view(3, CELLS, CELLS), None


@dataclass(frozen=True)
class ConfigWithLight(AlignConfig):
    light: LightConfig = field(default_factory=LightConfig)


@pytest.fixture
def with_light(monkeypatch: pytest.MonkeyPatch, on_scenes: Callable[..., AlignConfig]) -> ConfigWithLight:
    row = Modality(LightEncoder, LightReader, "light_image_ids", probe_light, {("light", "text"): 1})
    monkeypatch.setitem(MODALITIES, "light", row)
    base = on_scenes()
    parts = {name: getattr(base, name) for name in AlignConfig.__dataclass_fields__}
    parts["model"] = replace(base.model, modalities=("image", "text", "light"))
    parts["train"] = replace(base.train, steps=2)
    return ConfigWithLight(**parts)


def test_a_fourth_modality_trains_two_steps_and_is_evaluated(
    with_light: ConfigWithLight, open_data: Callable[[AlignConfig], AlignData], tmp_path: Path
) -> None:
    data = open_data(with_light)
    torch.manual_seed(0)
    run = build_run(with_light, data.vocabulary)
    before = run.model.encoders["light"].trunk.linear.weight.clone()
    trainer = build_trainer(with_light.train, torch.device("cpu"), tmp_path / "run", [], resume=False)
    fit(trainer, AlignTask(run), data, tmp_path / "run", resume=False)
    assert trainer.global_step == 2
    assert not torch.equal(run.model.encoders["light"].trunk.linear.weight, before)
    found = evaluate_split(run, data, data.open("val"), "val", with_light.eval)
    assert {"light_to_text", "text_to_light", "image_to_text"} <= found.results.keys()
    assert found.embeddings.arrays()["light_image_ids"].shape == (9,)
    assert found.embeddings.load is not None and found.embeddings.load.shape[1] == 4


def test_what_the_others_draw_does_not_depend_on_it(
    with_light: ConfigWithLight, on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData]
) -> None:
    with_it = open_data(with_light).train_view[3, 1]
    without = open_data(on_scenes()).train_view[3, 1]
    assert np.array_equal(with_it.rows["image"], without.rows["image"]) and with_it.captions == without.captions  # type: ignore[arg-type]


def test_every_row_has_what_the_house_reads_of_it(tiny: AlignConfig) -> None:
    batch = probe_batch(encoders_of(tiny))
    readers = build_readers(encoders_of(tiny))
    for modality, row in MODALITIES.items():
        assert hasattr(tiny, modality) and len(batch.inputs[modality]) == 3
        assert (modality in readers) == (row.reader is not None)
        assert row.chances == (readers[modality].chances if modality in readers else 0)
    assert len({row.ids for row in MODALITIES.values()}) == len(MODALITIES)


def test_pairs_come_in_the_order_of_their_stages() -> None:
    assert pairs_of(("text", "image", "audio")) == {("image", "text"): 1, ("audio", "text"): 2, ("image", "audio"): 3}
    assert list(pairs_of(MODALITIES)) == [("image", "text"), ("audio", "text"), ("image", "audio")]
    assert pairs_of(("audio", "text")) == {("audio", "text"): 2} and pairs_of(("image",)) == {}


def test_a_run_of_three_loads_as_before_beside_it(tiny_run: Callable[..., Any], tmp_path: Path) -> None:
    save_run(tiny_run(), tmp_path / "run")
    assert load_run(tmp_path / "run").model.modalities == ("image", "audio", "text")
