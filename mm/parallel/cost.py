"""What a training step costs under a layout: bytes of a GPU by role, and seconds by what takes them.

A stated model, no measurement. One GPU computes its share of the products at a share of the machine's peak. Sharded
data parallelism gathers parameters twice and reduces fp32 gradients once, behind the products as far as these
last. Tensor and expert parallelism wait for their collectives. A pipeline of p stages, m microbatches and v turns
stands still for (p - 1) / (m · v) of its work. A collective among GPUs of one machine runs at NVLink's rate; of
several machines at that of the network cards of its members in one machine together, as NCCL's rings do.
"""

from dataclasses import dataclass, field
from typing import Literal

from mm.parallel.layout import ParallelConfig

Recompute = Literal["none", "selective", "full"]
RECOMPUTED: dict[Recompute, float] = {"none": 0.0, "selective": 0.5, "full": 1.0}
"""Share of the forward that backward repeats."""
OVERLAP = 0.9
"""Share of the products' time in which collectives of sharded data parallelism run beside them."""


@dataclass(frozen=True)
class Machine:
    """One GPU and what connects it, by its data sheet."""

    peak: float
    """bf16 FLOP/s of dense products."""
    memory: float
    """Bytes."""
    hbm: float
    """Bytes/s of its memory."""
    nvlink: float
    """Bytes/s to the GPUs of its machine, in one direction."""
    network: float
    """Bytes/s of its network card, in one direction."""
    node: int = 8
    """GPUs of a machine."""


MACHINES = {
    "a100": Machine(312e12, 80e9, 2.04e12, 300e9, 25e9),
    "h100": Machine(989e12, 80e9, 3.35e12, 450e9, 50e9),
    "h100_96gb": Machine(989e12, 96e9, 2.4e12, 450e9, 50e9),
    "h200": Machine(989e12, 141e9, 4.8e12, 450e9, 50e9),
    "b200": Machine(2250e12, 180e9, 8e12, 900e9, 50e9),
}
"""By the name of the GPU."""


@dataclass(frozen=True)
class Rates:
    """What data sheets do not say; fitted to published runs by `mm.parallel.published`."""

    products: float = 0.435
    """Share of the peak that a step's products reach, compiled."""
    eager: float = 0.857
    """The same uncompiled, relative to compiled."""
    fp8: float = 1.27
    """Speed of fp8 products, relative to bf16."""
    experts: float = 1.13
    """Speed of a sparse model's products, relative to a dense one's."""
    links: float = 1.0
    """Share of the nominal rates that collectives reach."""
    stock: float = 0.266
    """Share of that which all-to-all by plain collectives reaches, without kernels of its own."""
    selective: float = 21.6
    """Bytes that are kept for backward of a token, a layer and a channel, under selective recomputation."""
    full: float = 5.0
    """The same where blocks are recomputed."""


@dataclass(frozen=True)
class Workload:
    """One step of one data rank.

    Args:
        dense: parameters that every token uses.
        outside: of these, those outside of blocks, which pp does not divide.
        outside_tensors: of those, what tp divides.
        outside_whole: of those, what dp_shard does not divide beside a pipeline.
        experts: parameters of routed experts.
        flops: of a token, forward and backward, without attention.
        outside_flops: of these, those outside of blocks.
        layers: blocks.
        width: D, of a token.
        attended: tokens that a token attends to, on average.
        tokens: of a data rank's step.
        top_k: experts of a token.
        vocabulary: of the logits that every token has; 0 for none.
        recompute: what backward repeats.
        microbatches: of a data rank's step, in a pipeline.
        turns: stages of a pipeline that a GPU holds.
        gathered_bytes: of a parameter when it is gathered: 2 for bf16, 4 for fp32.
        techniques: any of `eager`, `fp8`, `async_tp`, `stock`, `grad_cache` where a pipeline runs its blocks forward
            twice, and `sequence_parallel` where tp divides what lies between blocks, too.
    """

    dense: float
    experts: float
    flops: float
    layers: int
    width: int
    attended: float
    tokens: float
    top_k: int = 0
    vocabulary: int = 0
    recompute: Recompute = "none"
    microbatches: int = 1
    turns: int = 1
    outside: float = 0.0
    outside_tensors: float = 0.0
    outside_whole: float = 0.0
    outside_flops: float = 0.0
    gathered_bytes: int = 2
    techniques: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Estimate:
    """What a step costs one GPU.

    Args:
        bytes: of memory, by role.
        seconds: by what takes them; `waiting` is of collectives that nothing hides, `bubble` of a pipeline.
    """

    bytes: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def memory(self) -> float:
        """All bytes."""
        return sum(self.bytes.values())

    @property
    def step(self) -> float:
        """All seconds."""
        return sum(self.seconds.values())

    @property
    def efficiency(self) -> float:
        """Share of the step that the same GPU would take if it had neither to wait for another nor to stand still."""
        alone = self.seconds["products"] + self.seconds["optimizer"]
        return alone / self.step


def estimate(load: Workload, layout: ParallelConfig, machine: Machine, rates: Rates) -> Estimate:
    """Bytes and seconds of a step on one GPU."""
    blocks, outside = _products(load, layout, machine, rates)
    products = blocks + outside
    again = blocks / 3 if _runs_twice(load, layout) else 0.0
    data = _data_parallel(load, layout, machine, rates)
    tensor = _tensor_parallel(load, layout, machine, rates)
    expert = _expert_parallel(load, layout, machine, rates)
    busy = blocks + again + tensor + expert
    seconds = {
        "products": products,
        "second forward": again,
        "tensor parallel": tensor,
        "expert parallel": expert,
        "data parallel": max(0.0, data - OVERLAP * products),
        "bubble": busy * (layout.pp - 1) / (load.microbatches * load.turns),
        # AdamW reads parameter, gradient and two moments, and writes three of them, in fp32.
        "optimizer": 28 * sum(_held(load, layout)) / machine.hbm,
    }
    return Estimate(_bytes(load, layout, rates), seconds)


def _runs_twice(load: Workload, layout: ParallelConfig) -> bool:
    return layout.pp > 1 and "grad_cache" in load.techniques


def _repeated(load: Workload, layout: ParallelConfig) -> int:
    """How often a forward's collectives are repeated."""
    return (load.recompute == "full") + _runs_twice(load, layout)


def _products(load: Workload, layout: ParallelConfig, machine: Machine, rates: Rates) -> tuple[float, float]:
    """Seconds of a GPU's products of blocks, and of those outside."""
    # Scores and sums take 4 · S · D a token and layer forward, twice that backward; fp8 does not speed them up.
    attention = 12 * load.layers * load.width * load.attended
    flops = load.flops - load.outside_flops
    blocks = (flops / rates.fp8 if "fp8" in load.techniques else flops) + attention
    blocks *= (3 + RECOMPUTED[load.recompute]) / 3
    rate = machine.peak * rates.products
    if "eager" in load.techniques:
        rate *= rates.eager
    if load.experts:
        rate *= rates.experts
    return load.tokens * blocks / rate / (layout.tp * layout.pp), load.tokens * load.outside_flops / rate


def _bandwidth(machine: Machine, members: int, inner: int, rates: Rates) -> float:
    """Bytes/s of a collective among `members` GPUs that stand `inner` apart."""
    if members * inner <= machine.node:
        return rates.links * machine.nvlink
    together = max(1, machine.node // inner)
    return rates.links * min(machine.nvlink, together * machine.network)


def _data_parallel(load: Workload, layout: ParallelConfig, machine: Machine, rates: Rates) -> float:
    """Seconds in which parameters are gathered and gradients reduced."""
    shared = layout.tp * layout.pp
    parts = (
        (load.dense / shared, layout.dp_shard, layout.tp),
        (load.experts / (shared * layout.ep), layout.dp_shard // layout.ep, layout.tp * layout.ep),
    )
    seconds = 0.0
    for parameters, members, inner in parts:
        # Twice parameters, once fp32 gradients.
        traffic = (2 * load.gathered_bytes + 4) * parameters * (members - 1) / members
        seconds += traffic / _bandwidth(machine, members, inner, rates)
        copies = layout.dp_replicate
        traffic = 2 * 4 * parameters / members * (copies - 1) / copies
        seconds += traffic / _bandwidth(machine, copies, inner * members, rates)
    return seconds


def _tensor_parallel(load: Workload, layout: ParallelConfig, machine: Machine, rates: Rates) -> float:
    """Seconds of two sums of all tokens a layer forward, two backward, and what is repeated of them."""
    sums = 4 + 2 * _repeated(load, layout)
    traffic = sums * 2 * 2 * load.tokens * load.width * (layout.tp - 1) / layout.tp
    seconds = load.layers / layout.pp * traffic / _bandwidth(machine, layout.tp, 1, rates)
    return seconds / 2 if "async_tp" in load.techniques else seconds


def _expert_parallel(load: Workload, layout: ParallelConfig, machine: Machine, rates: Rates) -> float:
    """Seconds in which each token's K rows go to their experts and back, forward and backward, and what is repeated."""
    passes = 4 + 2 * _repeated(load, layout)
    rate = rates.links * machine.nvlink
    inner = max(1, machine.node // layout.tp)
    if layout.ep > inner:
        # Of the rows, those for other machines pass a GPU's own network card.
        rate = rates.links * machine.network / (1 - inner / layout.ep)
    if "stock" in load.techniques:
        rate *= rates.stock
    traffic = passes * 2 * load.tokens * load.top_k * load.width * (layout.ep - 1) / layout.ep
    return load.layers / layout.pp * traffic / rate


def _outside(load: Workload, layout: ParallelConfig) -> float:
    """Parameters outside of blocks that a process of tp computes with."""
    return load.outside - load.outside_tensors * (1 - 1 / layout.tp)


def _held(load: Workload, layout: ParallelConfig) -> tuple[float, float]:
    """Dense and expert parameters that a GPU holds."""
    divided = layout.tp * layout.pp
    whole = load.outside_whole if layout.pp > 1 else 0.0
    dense = _outside(load, layout) - whole + (load.dense - load.outside) / divided
    return whole + dense / layout.dp_shard, load.experts / (divided * layout.dp_shard)


def _bytes(load: Workload, layout: ParallelConfig, rates: Rates) -> dict[str, float]:
    """Memory by role: fp32 parameters, gradients, moments; what is gathered; what is kept for backward; logits."""
    held = sum(_held(load, layout))
    gathered = 0.0
    if layout.dp_shard > 1:
        inside = load.dense - load.outside + load.experts / layout.ep
        stage = _outside(load, layout) + inside / (layout.tp * layout.pp)
        # A pipeline keeps parameters and fp32 gradients of its stage whole until the last microbatch; else two blocks
        # at a time are gathered.
        parameter = load.gathered_bytes
        gathered = (parameter + 4) * stage if layout.pp > 1 else 2 * parameter * stage / load.layers
    kept = {"none": 34.0, "selective": rates.selective, "full": rates.full}[load.recompute]
    # Of the first stage, which has begun as many microbatches as there are stages before the first one comes back.
    begun = min(layout.pp, load.microbatches)
    tokens = load.tokens / load.microbatches * begun
    layers = load.layers / layout.pp
    between = layout.tp if "sequence_parallel" in load.techniques or load.recompute != "full" else 1
    activations = tokens * layers * kept * load.width / between
    if load.recompute == "full":
        # The block that is being repeated.
        activations += load.tokens / load.microbatches * 34.0 * load.width / layout.tp
    return {
        "parameters": 4 * held,
        "gradients": 4 * held,
        "moments": 8 * held,
        "gathered": gathered,
        "activations": activations,
        # bf16 logits, and their fp32 probabilities and gradient.
        "logits": (2 + 4 + 4) * load.tokens / load.microbatches * load.vocabulary / layout.tp,
    }
