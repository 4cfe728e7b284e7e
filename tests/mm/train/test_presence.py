"""What an absent row holds changes nothing: no loss, no gradient, no statistic, no draw."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from encoders.quantizer import QUANTIZERS, QuantizerConfig
from mm.artifacts.run import Run
from mm.batch import Batch
from mm.config import AlignConfig
from mm.train.task import AlignTask

ABSENT = {"image": [1], "audio": [0, 4], "text": [2]}


class LastStage(AlignTask):
    """A task without a trainer, near its end: every term is on."""

    @property
    def global_step(self) -> int:  # type: ignore[override]
        return 9


def garbage(x: Tensor) -> Tensor:
    """What no encoder should ever read, of x's shape and type."""
    if x.dtype == torch.bool:
        return torch.ones_like(x)
    if x.is_floating_point():
        return torch.full_like(x, float("nan"))
    return torch.randint_like(x, 255)


def with_absent(batch: Batch, spoiled: bool) -> Batch:
    """The batch without ABSENT, whose content is zeros or garbage."""
    for modality, rows in ABSENT.items():
        batch.present[modality][rows] = False
        for tensors in (batch.inputs, batch.features, batch.masks):
            if modality in tensors:
                content = tensors[modality][rows]
                tensors[modality][rows] = garbage(content) if spoiled else torch.zeros_like(content)
    return batch


def step(task: AlignTask, batch: Batch) -> dict[str, Tensor]:
    """Every loss, gradient and buffer after two steps' forwards, by name."""
    found: dict[str, Tensor] = {}
    task.train()
    for turn in range(2):
        task.seed_step()
        output = task.read(batch)
        terms, load = task.losses(output, batch)
        terms.total.backward()
        task.rebalance(load)
        task.on_after_backward()
        found |= {f"{turn} {name}": value.detach() for name, value in terms.terms.items()}
        found[f"{turn} load"] = load
        for modality, encoded in output.encoded.items():
            found |= {f"{turn} {name}/{modality}": value for name, value in encoded.metrics.items()}
    found |= {name: parameter.grad for name, parameter in task.named_parameters() if parameter.grad is not None}
    found |= {name: buffer.clone() for name, buffer in task.named_buffers()}
    return found


def assert_unmoved(plain: dict[str, Tensor], spoiled: dict[str, Tensor]) -> None:
    assert plain.keys() == spoiled.keys() and len(plain) > 150
    assert not [name for name, value in plain.items() if not value.isfinite().all()]
    assert not [name for name, value in plain.items() if not torch.equal(value, spoiled[name])]


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_absent_inputs_change_nothing(
    tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch], kind: str
) -> None:
    quantizer = QuantizerConfig(kind, num_codes=16, width=8, levels=(4, 3))  # type: ignore[arg-type]
    moe = replace(tiny.model.backbone.moe, balance=0.1, entropy=0.1)
    model = replace(tiny.model, direct=True, backbone=replace(tiny.model.backbone, moe=moe))
    found = []
    for spoiled in (False, True):
        run = tiny_run(model=model, bottleneck=replace(tiny.bottleneck, quantizer=quantizer, reconstruct=4))
        found.append(step(LastStage(run), with_absent(tiny_batch(6), spoiled)))
    assert_unmoved(*found)


def test_absent_features_change_nothing(
    tiny: AlignConfig, tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]
) -> None:
    """Behind frozen trunks, whose features are cached."""
    found = []
    for spoiled in (False, True):
        run = tiny_run(model=replace(tiny.model, direct=True))
        batch = tiny_batch(6)
        with torch.no_grad():
            for modality, encoder in run.model.encoders.items():
                features = encoder.features(batch.inputs[modality], batch.masks.get(modality))
                batch.features[modality], batch.masks[modality] = features.tokens, features.mask
        batch = replace(batch, inputs={"text": batch.inputs["text"]})
        found.append(step(LastStage(run), with_absent(batch, spoiled)))
    assert_unmoved(*found)


def test_an_absent_row_counts_in_no_statistic(tiny_run: Callable[..., Run], tiny_batch: Callable[..., Batch]) -> None:
    """Statistics and load of six samples, two of which lack the image, are those of the four that have it."""
    found = []
    for kept in (6, 4):
        run = tiny_run()
        batch = tiny_batch(6).select(["image"])
        batch.present["image"][4:] = False
        if kept == 4:
            batch = Batch(batch.ids[:4])
            batch.put("image", tiny_batch(6).inputs["image"][:4])
        output = run.model.train()(batch)
        buffers = {name: buffer for name, buffer in run.model.named_buffers() if "image" in name}
        found.append({"load": output.load, **output.encoded["image"].losses, **buffers})
    assert found[0]["load"].any()
    torch.testing.assert_close(*found)
