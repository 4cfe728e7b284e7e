"""A model that two processes divide writes, by both together and between two steps, what one process writes."""

from pathlib import Path

import torch

from encoders.tokenizer import Tokenizer
from kernels.collectives import all_ranks, rank_and_size
from mm.artifacts.run import Run
from mm.bench.parity import built, differentiate, global_batch, initial_device, small_config, small_run
from mm.bench.processes import on_processes
from mm.infer.decoding import Decoding
from mm.infer.writing import TextWriter
from mm.parallel.layout import ParallelConfig
from mm.train.layouts import whole_root

LAYOUTS = ("fsdp2-ep2", "tp2")
CONFIG = small_config()
PREFIXES = ["", "two blue", "red", "a"]
GREEDY, BEAMS = Decoding(max_tokens=5), Decoding(max_tokens=3, beams=2)


def run_that_attends() -> Run:
    """Initial weights, but for what is zero-initialised, and of logits that are far apart."""
    run = small_run(CONFIG, initial_device())
    torch.manual_seed(1)
    for block in run.model.backbone.blocks:
        torch.nn.init.normal_(block.cross_attention.out_proj.weight)
    assert run.model.causal is not None
    torch.nn.init.normal_(run.model.causal.leave.weight)
    return run


def texts(run: Run) -> list[str]:
    """Beside images, some of which have a prefix, with and without beams."""
    writer = TextWriter(run.model.eval(), Tokenizer("scratch", CONFIG.text.max_tokens), all_ranks())
    rank, _ = rank_and_size(all_ranks())
    if rank:
        # One that finds something else goes the first one's way.
        found = writer.writer.next_logits
        writer.writer.next_logits = lambda x, written: found(x, written).flip(-1)  # type: ignore[method-assign]
    condition = writer.condition([global_batch(CONFIG, 0, len(PREFIXES))], "image")
    return [text for decoding in (GREEDY, BEAMS) for text in writer.write(PREFIXES, condition, decoding)]


def between_steps(layout: ParallelConfig | None) -> list[str]:
    """What is written between two steps."""
    task, _, meshes = built(run_that_attends(), layout)
    differentiate(task, meshes, 0)
    with whole_root(task):
        written = texts(task.run)
    task.train()
    differentiate(task, meshes, 1)
    return written


def of_a_rank(rank: int, folder: Path) -> None:
    for word in LAYOUTS:
        torch.save(between_steps(ParallelConfig.of_word(word)), folder / f"{word}.{rank}")


def test_processes_write_what_one_does(tmp_path: Path) -> None:
    on_processes(2, of_a_rank, (), tmp_path, 300)
    alone = between_steps(None)
    assert len(set(alone)) > len(PREFIXES)
    for word in LAYOUTS:
        for rank in (0, 1):
            assert torch.load(tmp_path / f"{word}.{rank}", weights_only=True) == alone, word
