"""Divide a model among processes, from outside: it knows nothing of it, and computes what it computed.

Heads and hidden widths by torch's tensor parallelism, experts by `mm.parallel.experts`, everything by FSDP2
(`fully_shard`; Zhao et al. 2023, Rajbhandari et al. 2020). The order matters: what is divided by tensors and experts is
sharded on another dimension beneath. A pipeline (`mm.parallel.pipeline`) leaves every process its own blocks, which are
then divided in the same way.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DeviceMesh, DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from encoders import Encoder
from encoders.text import ScratchTextTrunk, TextEncoder, TransformerLayer
from encoders.trunks import ConvNeXtBlock
from kernels.collectives import all_ranks, from_rank, sum_over_ranks, world
from kernels.errors import UserError
from mm.model.attention import Attention
from mm.model.backbone import CAUSAL_METHODS
from mm.model.moe import EXPERT_WEIGHTS, MoE
from mm.parallel.experts import DividedExperts, local
from mm.parallel.gradients import is_in_stage
from mm.parallel.mesh import Meshes
from mm.parallel.pipeline import Pipeline
from mm.parallel.stages import empty, is_elsewhere, mark_stages
from mm.parallel.vocabulary import DividedOutputProjection

MLPS: dict[type, tuple[str, str]] = {TransformerLayer: ("mlp.0", "mlp.2"), ConvNeXtBlock: ("expand", "project")}
"""Of an encoder's own blocks the layers into and out of the hidden width, four times the block's."""


def shard(root: nn.Module, model: Any, meshes: Meshes, device: torch.device, forward: str) -> None:
    """Divide a model in place; of the processes only the first needs its values, and none needs room for all of it on
    its device.

    Args:
        root: holds the model, its loss, and all other parameters; on the meta device but for the first process.
        model: `MultimodalModel`, whose blocks and encoders are gathered one at a time.
        meshes: of the processes.
        device: on which this process is to have its part.
        forward: name of the root's method that is a step: what belongs to no block or encoder is whole within it.

    Raises:
        UserError: the model has what cannot be divided so.
    """
    values = dict(root.state_dict()) if dist.get_rank() == 0 else {}
    buffers = dict(root.named_buffers()) if dist.get_rank() == 0 else {}
    count = sum(1 for _ in root.parameters())
    root.to("meta")
    if sum(1 for _ in root.parameters()) != count:
        raise UserError("a model whose modules share a parameter cannot be divided: train it with ddp")
    shapes = root.state_dict()
    divide(root, model, meshes)
    if meshes.layout.pp == 1:
        register_fsdp_forward_method(root, forward)
    fill(root, device, shapes, values, buffers)
    # Where it is already; Lightning takes note. It makes new parameters of divided ones, which are marked behind it.
    root.to(device)
    if meshes.layout.pp > 1:
        mark_stages(model.backbone.blocks)


def divide(root: nn.Module, model: Any, meshes: Meshes) -> None:
    """Say what each process holds of a model on the meta device: its blocks, of these its heads and experts, and of all
    that its share by FSDP2.

    Beside a pipeline each block and each encoder is sharded for itself: a root that held them would be in the middle of
    its backward, and gather nothing, while blocks go forward. Heads, norms and losses are whole on every process then.

    Args:
        root: holds the model, its loss, and all other parameters.
        model: `MultimodalModel`, whose blocks and encoders are gathered one at a time.
        meshes: of the processes.
    """
    layout = meshes.layout
    staged = layout.pp > 1
    blocks = divide_blocks(model.backbone, meshes) if staged else list(model.backbone.blocks)
    shards = not staged or layout.dp_shard > 1
    for block in blocks:
        divide_block(block, meshes)
        if shards:
            sharded(block, meshes.sharded, reshard=not staged)
            for method in CAUSAL_METHODS:
                register_fsdp_forward_method(block, method)
            # A stage's blocks stay whole from the first microbatch to the last one: `PlacedStage`.
            block.set_reshard_after_backward(not staged)
    for modality, encoder in model.encoders.items():
        if layout.tp > 1:
            divide_encoder(encoder, meshes)
        # Whoever writes reads the table of the text encoder all along a step: it is whole within it, as the root is.
        if shards and (modality != "text" or model.causal is None):
            sharded(encoder, meshes.sharded)
    if not staged:
        sharded(root, meshes.sharded, reshard=False)


def divide_blocks(backbone: Any, meshes: Meshes) -> list[Any]:
    """Leave this process of a pipeline its own blocks, and return them."""
    if any(block.self_attention.term_bias is not None for block in backbone.blocks):
        raise UserError("a model with a bias towards terms has no pipeline: leave pp out of the layout")
    backbone.pipeline = Pipeline(backbone, meshes.layout, meshes.group("pp"))
    numbers: set[int] = set()
    for stage in backbone.pipeline.stages.values():
        numbers.update(stage)
    own: list[Any] = []
    for number, block in enumerate(backbone.blocks):
        if number in numbers:
            own.append(block)
        else:
            empty(block)
    return own


def divide_block(block: Any, meshes: Meshes) -> None:
    """Divide heads, the shared expert and routed experts of a block, as far as the layout does."""
    if meshes.layout.tp > 1:
        divide_attention(block.self_attention, meshes.tensors)
        divide_attention(block.cross_attention, meshes.tensors)
        divide_shared(block.moe, meshes.tensors)
    if meshes.experts is not None:
        divide_experts(block.moe, meshes, meshes.experts)
    if meshes.layout.ep > 1:
        shard_experts(block.moe, meshes)


def fill(
    root: nn.Module,
    device: torch.device,
    shapes: Mapping[str, Tensor],
    values: dict[str, Tensor],
    buffers: dict[str, Tensor],
) -> None:
    """Give every process its part of what the first one has.

    Args:
        root: divided, on the meta device.
        device: where it goes.
        shapes: all tensors of its state, whole, on the meta device.
        values: the same with their values; read on the first process.
        buffers: all of them, those that are in no state too; read on the first process.
    """
    root.to_empty(device=device)
    for name, part in root.state_dict().items():
        tensor = values[name].to(device) if values else torch.empty_like(shapes[name], device=device)
        put(part, from_rank(tensor.contiguous(), 0, all_ranks()))
    for name, buffer in root.named_buffers():
        if buffers:
            buffer.copy_(buffers[name])
        from_rank(buffer, 0, all_ranks())


def sharded(module: nn.Module | list[nn.Module], mesh: DeviceMesh, reshard: bool = True) -> None:
    """`fully_shard` what is not sharded yet, see `dimension`.

    reshard: whether it is divided again behind its forward; not where backward gathers it at once.
    """
    processes = mesh.size(mesh.ndim - 1)
    fully_shard(
        module,
        mesh=mesh,
        reshard_after_forward=reshard,
        shard_placement_fn=lambda parameter: dimension(parameter, processes),
    )


def dimension(parameter: Tensor, processes: int) -> Shard:
    """Along which dimension a parameter is sharded.

    The first one, in parts that may be uneven; another one that divides evenly, where the first is divided already by
    tensors or experts, or is shorter than there are processes: of 128 experts on 256 every second one had nothing.
    """
    divided = isinstance(parameter, DTensor) and any(placement.is_shard(0) for placement in parameter.placements)
    if divided or len(parameter) < processes:
        for dim in range(1, parameter.ndim):
            if local(parameter).shape[dim] % processes == 0:
                return Shard(dim)
    return Shard(0)


def divide_attention(attention: Attention, mesh: DeviceMesh) -> None:
    """Divide heads; outputs are summed. Raises UserError of a bias towards terms, which is one of all heads."""
    if attention.term_bias is not None:
        raise UserError("a model with a bias towards terms cannot be divided by heads: leave tp out of the layout")
    attention.heads //= mesh.size()
    columns = {name: ColwiseParallel() for name in ("q_proj", "k_proj", "v_proj")}
    # The input becomes one distributed tensor, so that backward sums the gradients of the three at once.
    whole = PrepareModuleInput(input_layouts=(Replicate(), None), desired_input_layouts=(Replicate(), None))
    parallelize_module(attention, mesh, {"": whole, **columns, "out_proj": RowwiseParallel()})


def divide_shared(moe: MoE, mesh: DeviceMesh) -> None:
    """Divide the hidden width of the shared expert.

    Gate and up are halves of one matrix: a share of its rows holds unlike parts of either, so that they are gathered
    before they meet.
    """
    if moe.shared is None:
        return
    gathered = ColwiseParallel(output_layouts=Replicate())
    parallelize_module(moe.shared, mesh, {"gate_up": gathered, "down": RowwiseParallel(input_layouts=Replicate())})


def divide_encoder(encoder: Encoder, meshes: Meshes) -> None:
    """Divide what the processes of tp can of an encoder: see `divided_layers`, and the vocabulary's projection."""
    for module, plan in divided_layers(encoder, meshes.layout.tp):
        parallelize_module(module, meshes.tensors, plan)
    if isinstance(encoder, TextEncoder):
        encoder.output = DividedOutputProjection(meshes.group("tp"))


def divided_layers(encoder: nn.Module, tp: int) -> Iterator[tuple[nn.Module, dict[str, ParallelStyle]]]:
    """Modules of an encoder some of whose layers are divided, and how: the hidden widths of MLPs that tp divides, and
    the token table of a trunk from scratch. Pretrained trunks and convolutions stay whole."""
    for module in encoder.modules():
        if type(module) in MLPS:
            wide, narrow = MLPS[type(module)]
            layer: Any = module.get_submodule(wide)
            if layer.out_features % tp == 0:
                yield module, {wide: ColwiseParallel(), narrow: RowwiseParallel()}
        elif isinstance(module, ScratchTextTrunk):
            yield module, {"token": RowwiseParallel(input_layouts=Replicate())}


def divide_experts(moe: MoE, meshes: Meshes, mesh: DeviceMesh) -> None:
    """Give every process its share of the routed experts."""
    for name in EXPERT_WEIGHTS:
        parameter = getattr(moe, name)
        divided = distribute_tensor(parameter.data, mesh, [Shard(0)] * mesh.ndim, src_data_rank=None)
        setattr(moe, name, nn.Parameter(divided, requires_grad=parameter.requires_grad))
    moe.experts = DividedExperts(moe.config.num_experts, meshes.group("ep"), meshes.group("tp"))


def shard_experts(moe: MoE, meshes: Meshes) -> None:
    """Shard experts among the processes that hold the same ones, and router and shared expert among all.

    Tokens of all ranks of ep come to an expert, whose gradient is their sum: it is divided by the number of all ranks
    that have samples, as a mean over them divides the others.
    """
    others: list[nn.Module] = [moe.router]
    if moe.shared is not None:
        others.append(moe.shared)
    reshard = meshes.layout.pp == 1
    sharded(others, meshes.sharded, reshard)
    sharded(moe, meshes.sharded_experts, reshard)
    wrapped: Any = moe
    wrapped.set_gradient_divide_factor(float(meshes.layout.data))
    if dist.get_backend() == "gloo" and meshes.sparse["outer"].size() > 1:
        # It has no sum that is scaled beforehand. Of one process, torch 2.11 would divide twice.
        wrapped.set_force_sum_reduction_for_comms(True)


def complete_gradients(root: nn.Module, model: Any, meshes: Meshes) -> None:
    """Make the gradients behind a backward those of one process, where neither FSDP2 nor the backward itself did."""
    sum_partial_gradients(model, meshes)
    if meshes.layout.pp == 1:
        return
    averaged = sharded_parameters(root)
    for parameter in root.parameters():
        if parameter.grad is None:
            continue
        grad = local(parameter.grad)
        if not is_in_stage(parameter):
            # The same on all, but for what a GPU adds in no fixed order: they shall not drift apart.
            from_rank(grad, 0, meshes.group("pp"))
        if parameter not in averaged:
            sum_over_ranks(grad, world()).div_(meshes.layout.data)


def sharded_parameters(root: nn.Module) -> set[Tensor]:
    """Those whose gradients FSDP2 averages over samples."""
    found: set[Tensor] = set()
    for module in root.modules():
        if isinstance(module, FSDPModule):
            found.update(module.parameters())  # type: ignore[attr-defined]
    return found


def sum_partial_gradients(model: Any, meshes: Meshes) -> None:
    """Add what the ranks of tp found for their own heads: gains of queries and keys are of all."""
    group = meshes.group("tp")
    if group is None:
        return
    for block in model.backbone.blocks:
        for attention in (block.self_attention, block.cross_attention):
            for norm in (attention.q_norm, attention.k_norm):
                if norm.weight.grad is not None:
                    sum_over_ranks(local(norm.weight.grad), group)


def divided_like(x: Tensor, parameter: Tensor) -> Tensor:
    """A tensor that every process has whole, divided as a parameter is; one that is divided stays as it is."""
    if is_elsewhere(parameter):
        return torch.empty_like(parameter)
    if not isinstance(parameter, DTensor) or isinstance(x, DTensor):
        return x
    return distribute_tensor(x, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def put(part: Tensor, whole: Tensor) -> None:
    """Copy a tensor that this process has whole into its part of it."""
    if not is_elsewhere(part):
        local(part).copy_(local(divided_like(whole, part)))
