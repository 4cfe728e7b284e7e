"""A split that ranks embed together, also where they divide the model: every row as one process has it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kernels.collectives import world
from mm.artifacts.run import Run, build_run
from mm.bench.parity import built
from mm.bench.processes import on_processes
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.evaluation.embed import embed_split
from mm.parallel.layout import ParallelConfig
from mm.train.layouts import whole_root

LAYOUTS = ("ddp2", "fsdp2", "fsdp2-ep2", "tp2", "pp2")


def embedded(run: Run, data: AlignData, path: Path) -> None:
    found = embed_split(run, data, data.eval_view(data.open("val")), "val", world())
    vectors = {m: part.vectors for m, part in found.parts.items()}
    tokens = {f"{m} tokens": part.tokens for m, part in found.parts.items()}
    torch.save({**vectors, **tokens, "load": torch.from_numpy(found.load)}, path)


def of_a_rank(rank: int, config: AlignConfig, data: AlignData, folder: Path) -> None:
    for word in LAYOUTS:
        torch.manual_seed(0)
        run = build_run(config, data.vocabulary)
        task, _, _ = built(run, ParallelConfig.of_word(word))
        with whole_root(task):
            embedded(task.run, data, folder / f"{word}.{rank}")


@pytest.fixture
def found(
    on_scenes: Callable[..., AlignConfig],
    open_data: Callable[[AlignConfig], AlignData],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.setattr("kernels.dispatch.has_bf16", lambda device: False)
    # Nine samples in three batches, which two ranks do not divide; 45 captions in 12.
    config = on_scenes(eval={"batch_size": 4})
    data = open_data(config)
    on_processes(2, of_a_rank, (config, data), tmp_path, 100)
    torch.manual_seed(0)
    embedded(build_run(config, data.vocabulary), data, tmp_path / "alone")
    return tmp_path


def test_ranks_embed_what_one_process_does(found: Path) -> None:
    """To the bit where each rank computes whole batches by whole experts; others add in another order."""
    expected = torch.load(found / "alone", weights_only=True)
    assert len(expected["text"]) == 45 and len(expected["image"]) == 9
    for word in LAYOUTS:
        for rank in (0, 1):
            own = torch.load(found / f"{word}.{rank}", weights_only=True)
            assert own.keys() == expected.keys()
            for name, value in expected.items():
                tolerance = 0.0 if word in ("ddp2", "fsdp2") else 1e-5
                torch.testing.assert_close(own[name], value, rtol=tolerance, atol=tolerance, msg=f"{word} {name}")
