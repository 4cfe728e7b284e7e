"""Every layout of a run on so many GPUs, the fastest that fits first: predicted by `mm.parallel.cost`, not measured."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from eval.layouts import published_errors
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.config import AlignConfig
from mm.parallel.cost import MACHINES, Estimate, Machine, Rates, Workload, estimate
from mm.parallel.layout import ParallelConfig, layouts, microbatches, obstacle, untrained


@dataclass(frozen=True)
class PlanConfig(AlignConfig):
    """A run, and the machines that it is planned for."""

    gpus: Annotated[int, "[1, inf)"] = 8
    """How many GPUs there are."""
    machine: Literal["a100", "h100", "h100_96gb", "h200", "b200"] = "h100"
    """What one of them is; eight stand in a machine."""
    memory: Annotated[float, "[0, inf)"] = 0.0
    """GB of a GPU that may be used; 0 for nine tenths of what it has."""
    rows: Annotated[int, "[1, inf)"] = 12
    """Layouts that are shown."""
    published: Path | None = None
    """CSV file of published runs that the model is fitted to and compared with, instead of planning."""
    json: Path | None = None
    """Where to write what was found."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, "")


@dataclass(frozen=True)
class Planned:
    """A layout and what it costs."""

    layout: ParallelConfig
    estimate: Estimate
    fits: bool


def plan(config: PlanConfig) -> None:
    """Print the layouts of a run, or how the model that they are ranked by compares with published runs.

    Raises:
        UserError: no layout is possible.
    """
    from mm.artifacts.environment import commit
    from mm.files import write_json

    if config.published is not None:
        from mm.parallel.published import compared

        found: dict[str, Any] = {"kind": "published", **compared(config.published)}
        _show_published(found)
    else:
        whole = workload(config)
        found = {"kind": "plan", **stored(config, whole, planned(config, whole))}
        _show(config, found)
    if config.json is not None:
        write_json(config.json, {**found, "commit": commit()})


def planned(config: PlanConfig, whole: Workload) -> list[Planned]:
    """Every possible layout of a step of the whole batch: those that fit by its seconds, then the others by memory.

    Raises:
        UserError: no layout is possible.
    """
    machine = MACHINES[config.machine]
    limit = config.memory * 1e9 or 0.9 * machine.memory
    found = []
    reason = None
    for layout in layouts(config.gpus, machine.node):
        reason_of = obstacle(layout, config.model.backbone, config.train.batch_size)
        if reason_of is not None:
            reason = reason or reason_of
            continue
        cost = estimate(of_rank(whole, config, layout), layout, machine, Rates())
        found.append(Planned(layout, cost, cost.memory <= limit))
    if not found:
        raise UserError(f"{config.gpus} GPUs cannot be divided for this run: {reason}")
    return sorted(found, key=lambda each: (not each.fits, each.estimate.step if each.fits else each.estimate.memory))


def workload(config: AlignConfig) -> Workload:
    """A step of the whole batch, from the model's own parameters on the meta device."""
    import torch

    from mm.artifacts.run import build_run, without_pretrained_weights

    with torch.device("meta"):
        model: Any = build_run(without_pretrained_weights(config), torch.arange(1000)).model
    backbone = config.model.backbone
    moe = backbone.moe
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = 0
    blocks = 0
    inside = 0
    for block in model.backbone.blocks:
        experts += block.moe.w_in.numel() + block.moe.w_out.numel()
        # Embedding reads each modality alone: cross-modal attention is of the few pairs that are matched.
        blocks += sum(parameter.numel() for parameter in block.embedding_parameters())
        inside += sum(parameter.numel() for parameter in block.parameters())
    active = blocks - experts + experts * moe.top_k / moe.num_experts
    lengths = {m: len(encoder.bottleneck.position) for m, encoder in model.encoders.items()}
    encoded = sum(sum(p.numel() for p in encoder.parameters()) * lengths[m] for m, encoder in model.encoders.items())
    tokens = sum(lengths.values())
    encoders = sum(parameter.numel() for parameter in model.encoders.parameters())
    return Workload(
        dense=total - experts,
        experts=experts,
        flops=6 * (active + encoded / tokens),
        layers=max(1, backbone.layers),
        width=backbone.width,
        attended=sum(length**2 for length in lengths.values()) / tokens,
        tokens=tokens * config.train.batch_size,
        top_k=moe.top_k,
        recompute="full" if backbone.checkpoint else "none",
        # What train_align does: fp32 parameters, as autocast wants them, neither compiled steps nor kernels of its own
        # for all-to-all; a pipeline whose loss reads all rows at once.
        gathered_bytes=4,
        techniques=frozenset({"eager", "stock", "grad_cache"}),
        outside=total - inside,
        outside_tensors=sum(map(tensors_of, model.encoders.values())),
        outside_whole=total - inside - encoders,
        outside_flops=6 * encoded / tokens,
    )


def tensors_of(encoder: Any) -> int:
    """Parameters of an encoder that tp divides, if its hidden widths allow it."""
    from mm.parallel.shard import divided_layers

    count = 0
    for module, layers in divided_layers(encoder, 1):
        for name in layers:
            layer: Any = module.get_submodule(name)
            count += layer.weight.numel()
    return count


def of_rank(whole: Workload, config: AlignConfig, layout: ParallelConfig) -> Workload:
    """The share of a data rank."""
    samples = config.train.batch_size // layout.data
    parts = microbatches(samples, layout) if layout.pp > 1 else 1
    return replace(whole, tokens=whole.tokens / layout.data, microbatches=parts, turns=layout.turns)


def command(config: PlanConfig, layout: ParallelConfig) -> str:
    """What trains under a layout, on each machine."""
    node = MACHINES[config.machine].node
    nodes, processes = max(1, config.gpus // node), min(config.gpus, node)
    start = f"torchrun --nnodes {nodes} --nproc-per-node {processes} scripts/train_align.py"
    options = f"--train.strategy {layout} --train.devices {processes} --train.num_nodes {nodes}"
    return f"{start} --config configs/{config.name}.yaml {options}"


def stored(config: PlanConfig, whole: Workload, ranked: Sequence[Planned]) -> dict[str, Any]:
    """The plan of a step of the whole batch as it is written to a file."""
    machine: Machine = MACHINES[config.machine]
    writes = config.model.generate
    rows = []
    for each in ranked[: config.rows]:
        cost = each.estimate
        rows.append(
            {
                "layout": str(each.layout),
                "fits": each.fits,
                "memory": cost.memory,
                "bytes": cost.bytes,
                "step": cost.step,
                "seconds": cost.seconds,
                "efficiency": cost.efficiency,
                "trains": untrained(each.layout, writes) is None,
            }
        )
    return {
        "run": config.name,
        "gpus": config.gpus,
        "machine": {"name": config.machine, **asdict(machine)},
        "limit": config.memory * 1e9 or 0.9 * machine.memory,
        "batch_size": config.train.batch_size,
        "layouts": len(ranked),
        "fitting": sum(each.fits for each in ranked),
        "rates": asdict(Rates()),
        "whole": sizes_of(config, whole, ParallelConfig(dp_replicate=config.gpus)),
        "sharded": sizes_of(config, whole, ParallelConfig(dp_shard=config.gpus)),
        "command": next(
            (command(config, each.layout) for each in ranked if each.fits and untrained(each.layout, writes) is None),
            None,
        ),
        "rows": rows,
    }


def sizes_of(config: PlanConfig, whole: Workload, layout: ParallelConfig) -> dict[str, Any]:
    """Bytes of a GPU under one layout, by role and together."""
    cost = estimate(of_rank(whole, config, layout), layout, MACHINES[config.machine], Rates())
    return {"memory": cost.memory, "bytes": cost.bytes}


def _show(config: PlanConfig, found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = (
        f"{config.name} on {config.gpus} x {config.machine}, predicted: {found['fitting']} of {found['layouts']} fit"
    )
    table = Table(title=title, title_justify="left", box=None)
    for column in ("layout", "GB", "s/step", "efficiency", "waits for", "train_align"):
        table.add_column(column, justify="left" if column[0] in "lwt" else "right", no_wrap=True)
    for row in found["rows"]:
        waits = {name: value for name, value in row["seconds"].items() if name not in ("products", "optimizer")}
        longest = max(waits, key=lambda name: waits[name])
        gigabytes = f"{row['memory'] / 1e9:.1f}" + ("" if row["fits"] else " too large")
        why = longest if waits[longest] > 0 else "nothing"
        has = "yes" if row["trains"] else "no"
        table.add_row(row["layout"], gigabytes, f"{row['step']:.2f}", f"{100 * row['efficiency']:.0f} %", why, has)
    Console().print(table)
    print(f"the fastest that trains: {found['command'] or 'none fits'}")


def _show_published(found: dict[str, Any]) -> None:
    for row in found["rows"]:
        ratio = row["predicted_tokens"] / row["tokens"]
        kind = "fitted" if row["fitted"] else "held out"
        print(f"{row['run']}, {row['layout']}: {row['tokens']:,.0f} tokens/s, predicted {ratio:.2f} of it ({kind})")
    print(published_errors(found))
