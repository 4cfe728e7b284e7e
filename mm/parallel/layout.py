"""How a run is divided among processes, as one word: `fsdp8-tp2-ep4`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kernels.errors import UserError
from mm.model.backbone import BackboneConfig

WORDS = {"ddp": "dp_replicate", "fsdp": "dp_shard", "tp": "tp", "pp": "pp", "vpp": "turns", "ep": "ep"}
"""What a layout's parts are called in a word."""
PART = re.compile(r"([a-z]+)([1-9]\d*)")
MICROBATCHES = 4
"""Of a pipeline, for each of its processes."""


@dataclass(frozen=True)
class ParallelConfig:
    """Into how many parts each thing is divided.

    Experts are divided among processes that otherwise have samples of their own: `ep` divides `dp_shard` and takes no
    processes. Processes of one tp group have the same samples.

    Args:
        dp_replicate: groups that hold the whole state, and average gradients.
        dp_shard: processes that hold a share of parameters, gradients and moments each (ZeRO-3).
        tp: processes that divide heads, the shared expert's hidden width and routed experts.
        pp: processes that hold different blocks.
        ep: processes that hold different experts.
        turns: stages of a process of pp, whose schedule is then interleaved (Megatron's virtual pipeline).
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1
    turns: int = 1

    def __post_init__(self) -> None:
        if self.dp_shard % self.ep:
            raise UserError(f"layout {self}: ep{self.ep} does not divide fsdp{self.dp_shard}, whose processes it takes")
        if self.turns > 1 and self.pp == 1:
            raise UserError(
                f"layout {self}: vpp{self.turns} are the stages of a process of ppN: add pp2, or leave it out"
            )

    @classmethod
    def of_word(cls, word: str) -> "ParallelConfig":
        """`fsdp8-tp2-ep4` -> the layout; a part that is left out is 1.

        Raises:
            ValueError: a part is not known, or comes twice.
        """
        found: dict[str, int] = {}
        for part in word.split("-"):
            match = PART.fullmatch(part)
            name = WORDS.get(match[1]) if match else None
            if match is None or name is None or name in found:
                raise UserError(
                    f"layout {word!r}: {part!r} is none of ddpN, fsdpN, tpN, ppN, vppN, epN, each at most once"
                )
            found[name] = int(match[2])
        return cls(**found)

    def __str__(self) -> str:
        """The word; `fsdp1` of one process."""
        sizes = {word: getattr(self, name) for word, name in WORDS.items()}
        return "-".join(f"{word}{size}" for word, size in sizes.items() if size > 1) or "fsdp1"

    @property
    def data(self) -> int:
        """Processes that have different samples."""
        return self.dp_replicate * self.dp_shard

    @property
    def processes(self) -> int:
        """All of them."""
        return self.data * self.tp * self.pp


def is_layout(word: str) -> bool:
    """Whether a strategy's name is meant as a layout: its first part is one."""
    match = PART.fullmatch(word.split("-")[0])
    return match is not None and match[1] in WORDS


def obstacle(layout: ParallelConfig, model: BackboneConfig, batch_size: int) -> str | None:
    """Why a model cannot be divided so, and what would do; None where it can.

    Args:
        layout: of the processes.
        model: what is divided.
        batch_size: samples of a step, of all processes.
    """
    experts = model.moe.num_experts
    if model.heads % layout.tp:
        return f"tp{layout.tp} does not divide the {model.heads} heads: take one of {_divisors(model.heads)}"
    if model.layers and experts % (layout.ep * layout.tp):
        shares = f"ep{layout.ep}-tp{layout.tp}" if layout.tp > 1 else f"ep{layout.ep}"
        return f"{shares} does not divide the {experts} experts: the product has to be one of {_divisors(experts)}"
    if model.moe.shared % layout.tp:
        return f"tp{layout.tp} does not divide the shared expert's width {model.moe.shared}"
    stages = layout.pp * layout.turns
    if stages > 1 and (model.layers == 0 or model.layers % stages):
        what = f"pp{layout.pp}" if layout.turns == 1 else f"pp{layout.pp} times vpp{layout.turns}"
        return f"{what} does not divide the {model.layers} blocks: take one of {_divisors(model.layers)}"
    if layout.pp > 1 and model.dropout:
        return "a pipeline runs its blocks twice, and dropout would draw anew: set model.backbone.dropout=0"
    outer = layout.dp_shard // layout.ep
    if layout.ep * layout.tp > 1 and model.width % outer:
        what = f"fsdp{layout.dp_shard} over ep{layout.ep} divides an expert in {outer}"
        return f"{what}, which does not divide the width {model.width}"
    if batch_size % layout.data:
        return f"{layout.data} processes with samples of their own do not divide the batch of {batch_size}"
    return None


def untrained(layout: ParallelConfig, writes: bool) -> str | None:
    """Why train_align does not have a layout that the planner knows, and what would do; None where it has it.

    writes: whether the model writes text, which attends to what stands within each block.
    """
    if layout.pp > 1 and writes:
        return "a model that writes (model.generate) has no pipeline: leave pp out of the layout"
    return None


def microbatches(rows: int, layout: ParallelConfig) -> int:
    """Into how many parts a pipeline divides rows: a multiple of its processes, for the interleaved schedule."""
    return layout.pp * min(MICROBATCHES, max(1, rows // layout.pp))


def layouts(processes: int, node: int) -> Iterator[ParallelConfig]:
    """Every division of so many processes whose tensor parallelism stays inside a machine of `node` processes."""
    for pp in _divisors(processes):
        for tp in _divisors(processes // pp):
            if tp > node:
                continue
            data = processes // (pp * tp)
            for shard in _divisors(data):
                for ep in _divisors(shard):
                    yield ParallelConfig(data // shard, shard, tp, pp, ep)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
