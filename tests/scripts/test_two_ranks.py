"""train_align on two gloo processes: the weights and figures of one, also where a run goes on with another number."""

import csv
import faulthandler
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
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
PRELOADED = [__name__, "mm.train.align", "mm.train.trainer", "mm.evaluation.retrieval", "mm.train.layouts"]
PATIENCE = 300  # seconds; a busy machine says nothing of the code
SMALL = """
image: {size: 32, width: 16, depth: 1}
audio: {width: 16, depth: 1}
text: {width: 16, depth: 1, heads: 2}
bottleneck: {quantizer: {num_codes: 4, width: 8}, reconstruct: 6}
model:
  embedding: 16
  token_embedding: 8
  backbone: {width: 32, layers: 2, heads: 2, moe: {num_experts: 8, top_k: 2, hidden: 8, shared: 16}}
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


@dataclass(frozen=True)
class Rank:
    """One process of a run, and what befalls it."""

    words: list[str]
    """What the script is given."""
    rank: int
    ranks: int
    port: int
    """Where they find each other, as torchrun's do."""
    stderr: Path
    killed_at: int
    """The step in which it gets SIGKILL."""
    stopped_at: int
    """The step in which it gets SIGTERM."""
    broken: str
    """`image`: one does not decode; `audio`: it is not finite."""

    def run(self) -> None:
        """Run the script in this process."""
        torch.set_num_threads(1)
        multiprocessing.set_start_method("fork", force=True)  # of what reads: as in a process that a user starts
        found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port, "WORLD_SIZE": self.ranks}
        found |= {"RANK": self.rank, "LOCAL_RANK": self.rank}
        if self.ranks > 1:
            os.environ.update({name: str(value) for name, value in found.items()})
        with self.stderr.open("w") as file:
            os.dup2(file.fileno(), 2)
            sys.stderr = file
            faulthandler.dump_traceback_later(PATIENCE - 5)
            self._spoil()
            sys.argv = [str(SCRIPT), *self.words]
            runpy.run_path(str(SCRIPT), run_name="__main__")

    def _spoil(self) -> None:
        seed_step, read = AlignTask.seed_step, AlignTask.read

        def begun(task: AlignTask) -> None:
            seed_step(task)
            if self.broken == "image":
                raise UserError("an image does not decode")
            if task.global_step == self.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if task.global_step == self.stopped_at:
                os.kill(os.getpid(), signal.SIGTERM)

        def infinite(task: AlignTask, batch):  # type: ignore[no-untyped-def]
            batch.inputs["audio"] = batch.inputs["audio"] / 0
            return read(task, batch)

        AlignTask.seed_step = begun  # type: ignore[method-assign]
        if self.broken == "audio":
            AlignTask.read = infinite  # type: ignore[method-assign]


@pytest.fixture
def train(root: Path, tmp_path: Path) -> Callable[..., list[int]]:
    """train(name, ranks, *flags, killed_at=, stopped_at=, broken=) -> exit codes of the script's processes.

    All of them are killed within step killed_at; the last of them is stopped in step stopped_at, or broken. Rank r
    writes its stderr to <name>.<r>.
    """
    (tmp_path / "small.yaml").write_text(SMALL)
    # A process forked from this one would lack the threads of whatever has computed here, and wait for them for ever.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def run(
        name: str, ranks: int, *flags: str, killed_at: int = -1, stopped_at: int = -1, broken: str = ""
    ) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["--config", tmp_path / "small.yaml", "--data.root", root, "--data.cache", tmp_path / "cache"]
        words += ["--runs", tmp_path, "--name", name, "--train.devices", ranks, *flags]
        processes = []
        for rank in range(ranks):
            last = rank == ranks - 1
            befalls = (killed_at, stopped_at if last else -1, broken if last else "")
            one = Rank([str(word) for word in words], rank, ranks, port, tmp_path / f"{name}.{rank}", *befalls)
            processes.append(context.Process(target=one.run))
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        said = [(tmp_path / f"{name}.{rank}").read_text() for rank in range(ranks)]
        assert None not in codes, "\n".join(said)
        return codes  # type: ignore[return-value]

    return run


def last_words(stderr: Path) -> str:
    """The line with which a process ends that says why; empty where it leaves that to another."""
    _, sign, said = stderr.read_text().partition("train_align: ")
    assert said.count("\n") <= 1
    return sign + said.rstrip("\n")


def figures(run: Path) -> dict[str, float]:
    """What the run logged of its last row, but for what a machine measures: speed and memory."""
    *_, last = (row for row in csv.DictReader((run / "metrics.csv").open()) if row["train/total"])
    measured = {"images_per_second", "memory_gb"}
    return {name: float(value) for name, value in last.items() if value and name not in measured}


def test_runs_on_two_ranks_or_resumed_on_another_number_end_with_the_same_weights(
    train: Callable[..., list[int]], tmp_path: Path
) -> None:
    """Killed within step 5, of two in an epoch: mid-epoch. AdamW makes a step of full size of a gradient that is
    rounding alone, so that single weights may differ by more than rounding."""
    assert train("one", 1) == [0]
    assert train("two", 2) == [0, 0]
    assert train("grown", 1, killed_at=5) == [-signal.SIGKILL]
    assert train("shrunk", 2, killed_at=5) == [-signal.SIGKILL] * 2
    assert train("stopped", 2, stopped_at=3) == [128 + signal.SIGTERM] * 2
    for rank in (0, 1):
        said = last_words(tmp_path / f"stopped.{rank}")
        assert "stopped by SIGTERM after step 4 of 10, which is kept; to go on: " in said
    resumed = ["--resume", "true", "--data.workers", "1"]
    assert train("stopped", 2, *resumed) == [0, 0]
    assert train("grown", 2, *resumed) == [0, 0]
    assert train("shrunk", 1, *resumed) == [0]
    # Divided by data and experts, killed, on by heads, killed, and on by blocks that are sharded.
    assert train("divided", 2, "--train.strategy", "fsdp2-ep2", killed_at=5) == [-signal.SIGKILL] * 2
    assert train("divided", 2, "--train.strategy", "tp2", "--resume", "true", killed_at=7) == [-signal.SIGKILL] * 2
    assert train("divided", 4, "--train.strategy", "fsdp2-pp2", *resumed) == [0] * 4
    expected = load_file(tmp_path / "one" / "model.safetensors")
    logged = figures(tmp_path / "one")
    assert logged["step"] == 9 and "train/itm/image_audio" in logged
    # Experts and heads that are divided are summed in another order, and AdamW enlarges what rounds otherwise.
    bounds = dict.fromkeys(("two", "grown", "shrunk", "stopped"), 1e-5) | {"divided": 2e-4}
    for name, bound in bounds.items():
        found = load_file(tmp_path / name / "model.safetensors")
        torch.testing.assert_close(found, expected, rtol=bound, atol=5 * bound)
        assert figures(tmp_path / name) == pytest.approx(logged, rel=bound, abs=bound)


def test_an_error_on_one_rank_ends_both_in_a_line(train: Callable[..., list[int]], tmp_path: Path) -> None:
    assert train("broken", 2, broken="image") == [2, 2]
    first, second = (last_words(tmp_path / f"broken.{rank}") for rank in (0, 1))
    assert first.startswith("train_align: another process of this run has ended")
    assert second == "train_align: an image does not decode"


def test_a_loss_that_breaks_on_one_rank_is_said_once(train: Callable[..., list[int]], tmp_path: Path) -> None:
    assert train("spoiled", 2, broken="audio") == [2, 2]
    first, second = (last_words(tmp_path / f"spoiled.{rank}") for rank in (0, 1))
    assert "commitment/audio" in first and "not finite" in first
    assert second == "" and "Traceback" not in (tmp_path / "spoiled.1").read_text()
