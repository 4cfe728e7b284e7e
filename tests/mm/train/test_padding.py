"""Padding that is computed and masked, as on a GPU, changes nothing beside padding that is dropped, as on a CPU."""

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


class LastStage(AlignTask):
    """A task without a trainer, near its end: every term is on."""

    @property
    def global_step(self) -> int:  # type: ignore[override]
        return 9


def steps(task: AlignTask, batches: list[Batch]) -> dict[str, Tensor]:
    """Terms, metrics and loads of a step on each batch; the gradients and buffers that they leave."""
    task.train()
    found: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        task.seed_step()
        terms, metrics, load = task.find(batch)
        task.rebalance(load)
        terms.total.backward()
        task.on_after_backward()
        for name, value in {**terms.terms, **metrics, "load": load}.items():
            found[f"{number} {name}"] = value.detach().float()
    found |= {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    found |= {name: buffer.clone().float() for name, buffer in task.named_buffers()}
    return found


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_computed_padding_is_dropped_padding(
    tiny: AlignConfig,
    tiny_run: Callable[..., Run],
    tiny_batch: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Three steps, of samples of which some lack a modality, and of one in which nobody has sound; codes are revived
    in the later ones."""
    depth = 2 if kind == "residual" else 1
    quantizer = QuantizerConfig(kind, num_codes=16, width=8, quantizers=depth, levels=(4, 3))  # type: ignore[arg-type]
    moe = replace(tiny.model.backbone.moe, balance=0.1, entropy=0.1)
    changes = {
        "model": replace(tiny.model, direct=True, backbone=replace(tiny.model.backbone, moe=moe)),
        "bottleneck": replace(tiny.bottleneck, quantizer=quantizer),
        "loss": replace(tiny.loss, filip_rows=4, itm_rows=4),
    }
    batches = [tiny_batch(6, seed) for seed in range(3)]
    for number, batch in enumerate(batches):
        batch.present["text"][number] = False
        batch.present["audio"][number:] = False
    batches[0].present["audio"][:] = torch.tensor([True, False, True, True, True, False])
    found = []
    for drops in (True, False):
        for module in ("kernels.padding", "encoders.quantizers.ema"):
            monkeypatch.setattr(f"{module}.host_reads", lambda x, drops=drops: drops)
        found.append(steps(LastStage(tiny_run(**changes)), batches))
    dropped, computed = found
    assert dropped.keys() == computed.keys() and len(dropped) > 150
    for name, value in dropped.items():
        torch.testing.assert_close(computed[name], value, rtol=2e-4, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")
