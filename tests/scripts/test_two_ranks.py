"""train_align on two gloo processes: the weights and figures of one, also where a run goes on with another number."""

import csv
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kernels.errors import UserError
from mm.batch import Sample
from mm.data.coco import write_coco
from mm.data.scenes.folder import sample_at
from mm.train.task import AlignTask

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_align.py"
SMALL = """
image: {size: 32, width: 16, depth: 1}
audio: {width: 16, depth: 1}
text: {width: 16, depth: 1, heads: 2}
bottleneck: {quantizer: {num_codes: 4, width: 8}, reconstruct: 6}
model:
  embedding: 16
  token_embedding: 8
  backbone: {width: 32, layers: 1, heads: 2, moe: {num_experts: 8, top_k: 2, hidden: 8, shared: 16}}
loss: {filip_rows: 6, itm_rows: 4}
schedule: {kind: progressive, stage2: 0.2, stage3: 0.4}
train: {steps: 10, batch_size: 8, precision: fp32, accelerator: cpu, checkpoint_every: 2, strategy: ddp, ema: 0.5}
"""


def scene(split: str, index: int) -> Sample:
    """Every third image has no sound."""
    sample = sample_at(0, split, index, 32)
    return sample if index % 3 else replace(sample, audio=None, sample_rate=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two") / "scenes"
    for split, size in (("train", 20), ("val", 6)):
        write_coco((scene(split, index) for index in range(size)), folder, split)
    return folder


@pytest.fixture
def train(root: Path, tmp_path: Path) -> Callable[..., None]:
    """train(name, ranks, *flags) runs the script in this process, as one of so many."""
    (tmp_path / "small.yaml").write_text(SMALL)

    def run(name: str, ranks: int, *flags: str) -> None:
        words = ["--config", tmp_path / "small.yaml", "--data.root", root, "--data.cache", tmp_path / "cache"]
        words += ["--runs", tmp_path, "--name", name, "--train.devices", ranks, *flags]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
            runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def on_ranks(
    ranks: int, start: Callable[[], None], stderr: Path, killed_at: int = -1, stopped_at: int = -1
) -> list[int]:
    """`start` in so many forked processes that find each other as torchrun's do -> their exit codes. Nothing may have
    trained in this process: its threads are not in the forked ones.

    Rank r writes its stderr to <stderr>.<r>. killed_at: the step in which all of them get SIGKILL; stopped_at: the one
    in which the last of them gets SIGTERM.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank: int) -> None:
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank}
        if ranks > 1:
            os.environ.update({name: str(value) for name, value in found.items()})
        with stderr.with_suffix(f".{rank}").open("w") as file:
            os.dup2(file.fileno(), 2)
            sys.stderr = file
            seed_step = AlignTask.seed_step

            def dying(task: AlignTask) -> None:
                seed_step(task)
                if task.global_step == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                if task.global_step == stopped_at and rank == ranks - 1:
                    os.kill(os.getpid(), signal.SIGTERM)

            AlignTask.seed_step = dying  # type: ignore[method-assign]
            start()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes  # type: ignore[return-value]  # None of one that hangs


def figures(run: Path) -> dict[str, float]:
    """What the run logged of its last row, but for what a machine measures: speed and memory."""
    *_, last = (row for row in csv.DictReader((run / "metrics.csv").open()) if row["train/total"])
    measured = {"images_per_second", "memory_gb"}
    return {name: float(value) for name, value in last.items() if value and name not in measured}


def test_runs_on_two_ranks_or_resumed_on_another_number_end_with_the_same_weights(
    train: Callable[..., None], tmp_path: Path
) -> None:
    """Killed within step 5, of two in an epoch: mid-epoch. AdamW makes a step of full size of a gradient that is
    rounding alone, so that single weights may differ by more than rounding."""
    one = on_ranks(1, lambda: train("one", 1), tmp_path / "one")
    two = on_ranks(2, lambda: train("two", 2), tmp_path / "two")
    killed = on_ranks(1, lambda: train("grown", 1), tmp_path / "grown", killed_at=5)
    killed += on_ranks(2, lambda: train("shrunk", 2), tmp_path / "shrunk", killed_at=5)
    assert one == [0] and two == [0, 0] and killed == [-signal.SIGKILL] * 3
    stopped = on_ranks(2, lambda: train("stopped", 2), tmp_path / "stopped", stopped_at=3)
    assert stopped == [128 + signal.SIGTERM] * 2
    said = [(tmp_path / f"stopped.{rank}").read_text().splitlines() for rank in (0, 1)]
    assert [len(lines) for lines in said] == [1, 1]
    assert all("stopped by SIGTERM after step 4 of 10, which is kept; to go on: " in lines[0] for lines in said)
    resumed = ["--resume", "true", "--data.workers", "1"]
    assert on_ranks(2, lambda: train("stopped", 2, *resumed), tmp_path / "stopped") == [0, 0]
    assert on_ranks(2, lambda: train("grown", 2, *resumed), tmp_path / "grown") == [0, 0]
    assert on_ranks(1, lambda: train("shrunk", 1, *resumed), tmp_path / "shrunk") == [0]
    # Divided by data and experts, killed, and on by heads.
    killed = on_ranks(
        2, lambda: train("divided", 2, "--train.strategy", "fsdp2-ep2"), tmp_path / "divided", killed_at=5
    )
    assert killed == [-signal.SIGKILL] * 2
    tensors = ["--train.strategy", "tp2", *resumed]
    assert on_ranks(2, lambda: train("divided", 2, *tensors), tmp_path / "divided") == [0, 0]
    expected = load_file(tmp_path / "one" / "model.safetensors")
    logged = figures(tmp_path / "one")
    assert logged["step"] == 9 and "train/itm/image_audio" in logged
    # Experts and heads that are divided are summed in another order, and AdamW enlarges what rounds otherwise.
    bounds = dict.fromkeys(("two", "grown", "shrunk", "stopped"), 1e-5) | {"divided": 2e-4}
    for name, bound in bounds.items():
        found = load_file(tmp_path / name / "model.safetensors")
        torch.testing.assert_close(found, expected, rtol=bound, atol=5 * bound)
        assert figures(tmp_path / name) == pytest.approx(logged, rel=bound, abs=bound)


def test_an_error_on_one_rank_ends_both_in_a_line(train: Callable[..., None], tmp_path: Path) -> None:
    def start() -> None:
        if os.environ["RANK"] == "1":
            AlignTask.seed_step = broken  # type: ignore[method-assign]
        train("broken", 2)

    def broken(task: AlignTask) -> None:
        raise UserError("an image does not decode")

    assert on_ranks(2, start, tmp_path / "broken") == [2, 2]
    said = [(tmp_path / f"broken.{rank}").read_text().splitlines() for rank in (0, 1)]
    assert said[1] == ["train_align: an image does not decode"]
    assert len(said[0]) == 1 and said[0][0].startswith("train_align: another process of this run has ended")


def test_a_loss_that_breaks_on_one_rank_is_said_once(train: Callable[..., None], tmp_path: Path) -> None:
    def start() -> None:
        if os.environ["RANK"] == "1":
            AlignTask.read = spoiled  # type: ignore[method-assign]
        train("spoiled", 2)

    read = AlignTask.read

    def spoiled(task: AlignTask, batch):  # type: ignore[no-untyped-def]
        batch.inputs["audio"] = batch.inputs["audio"] / 0
        return read(task, batch)

    assert on_ranks(2, start, tmp_path / "spoiled") == [2, 2]
    said = [(tmp_path / f"spoiled.{rank}").read_text().splitlines() for rank in (0, 1)]
    assert said[1] == [] and len(said[0]) == 1 and "commitment/audio" in said[0][0] and "not finite" in said[0][0]
