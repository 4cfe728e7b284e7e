"""What a finished model computes for inference alone: no losses, no statistics, nothing read by the host.

The modules here stand around a model's own, and leave its training forward as it is. Padding is computed and masked, so
that no shape depends on a value: batch and text length are the only sizes that vary. `prepare` makes the copy of a
model that they read, in which every mixture of experts has the body that an engine executes.

Letters: B batch, T tokens, L text length, S samples of a waveform or positions of a condition, D width, E embedding,
H heads, C context, V rows of the text trunk's table.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kernels.errors import UserError
from kernels.grouped_mlp import grouped_mlp
from mm.model.causal import Condition
from mm.model.heads import Center
from mm.model.log_mel import LogMelByProducts
from mm.model.moe import MoE, MoEOutput
from mm.model.multimodal import MultimodalModel
from mm.model.packed import Layout, Stream
from mm.model.writer import Writer

Experts = Callable[[MoE, str], nn.Module]
"""A mixture and its name in the model -> the module that computes its experts: x (N, D), chosen (N, K), weights (N, K)
-> (N, D)."""


class GroupedExperts(nn.Module):
    """The experts as `kernels.grouped_mlp` computes them: each token meets the K experts that it was sent to.

    Args:
        moe: whose weights they are.
        name: of it.
    """

    def __init__(self, moe: MoE, name: str) -> None:
        super().__init__()
        self.w_in = moe.w_in
        self.w_out = moe.w_out

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x (N, D), chosen (N, K) int64, weights (N, K) -> (N, D)."""
        return grouped_mlp(x, self.w_in, self.w_out, chosen, weights)


class DenseExperts(nn.Module):
    """All experts of every token as one gated MLP, those it was not sent to times zero: E / K times the arithmetic, and
    nothing but two linear layers, which every engine has.

    Args:
        moe: whose weights they are.
        name: of it.
    """

    def __init__(self, moe: MoE, name: str) -> None:
        super().__init__()
        experts, width, hidden = moe.w_out.shape
        gate, up = moe.w_in.detach().chunk(2, 1)
        self.experts = experts
        self.hidden = hidden
        self.gate: nn.Module = linear_of(gate.flatten(0, 1))
        self.up: nn.Module = linear_of(up.flatten(0, 1))
        # (E, D, H) -> (D, E·H)
        self.down: nn.Module = linear_of(moe.w_out.detach().permute(1, 0, 2).reshape(width, experts * hidden))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x (N, D), chosen (N, K) int64, weights (N, K) -> (N, D)."""
        share = torch.zeros(x.shape[0], self.experts, dtype=x.dtype, device=x.device).scatter(1, chosen, weights)
        hidden = nn.functional.silu(self.gate(x)) * self.up(x)
        hidden = hidden.unflatten(1, (self.experts, self.hidden)) * share[:, :, None]
        return self.down(hidden.flatten(1))


class FixedCenter(nn.Module):
    """A batch norm by its running statistics, as a difference and a product: (N, D) -> (N, D).

    Engines know batch norms behind convolutions; ExecuTorch's partitioner fails at two that have no weights.

    Args:
        center: whose statistics they are.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, center: Center) -> None:
        super().__init__()
        assert center.running_mean is not None and center.running_var is not None
        self.register_buffer("mean", center.running_mean)
        self.register_buffer("scale", (center.running_var + center.eps).rsqrt())

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return (x - self.mean) * self.scale


class InferenceMoE(nn.Module):
    """A mixture without its losses and its load: tokens (N, D) -> MoEOutput with x (N, D).

    Args:
        moe: whose router and shared expert it has.
        experts: computes its experts.
    """

    def __init__(self, moe: MoE, experts: nn.Module) -> None:
        super().__init__()
        self.router = moe.router
        self.shared = moe.shared
        self.experts = experts

    def forward(self, x: Tensor, modality: Tensor | None = None, real: Tensor | None = None) -> MoEOutput:
        """x (N, D) -> MoEOutput with x (N, D); modality and real count tokens where something is counted."""
        chosen, weights, _ = self.router(x)
        y = self.experts(x, chosen, weights)
        if self.shared is not None:
            y = y + self.shared(x)
        return MoEOutput(y)


class EncodeImage(nn.Module):
    """Images (B, 3, size, size) uint8 -> unit vectors (B, E).

    Args:
        model: of `prepare`.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, size, size) uint8 -> (B, E)."""
        return embed(self.model, "image", images, None)


class EncodeText(nn.Module):
    """Token ids (B, L) int64, mask (B, L) bool -> unit vectors (B, E).

    Args:
        model: of `prepare`.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, L) int64, mask (B, L) bool, its first column True -> (B, E)."""
        return embed(self.model, "text", ids, mask)


class EncodeAudio(nn.Module):
    """Waveforms (B, S) in [-1, 1], mask (B, S) bool -> unit vectors (B, E).

    Args:
        model: of `prepare`.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveform: Tensor, mask: Tensor) -> Tensor:
        """waveform (B, S), mask (B, S) bool, its first column True -> (B, E)."""
        return embed(self.model, "audio", waveform, mask)


class Match(nn.Module):
    """Images (B, 3, size, size) uint8 beside captions (B, L) -> log-odds (B,) that they are pairs.

    Args:
        model: of `prepare`.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """images (B, 3, size, size) uint8, ids (B, L) int64, mask (B, L) bool -> (B,)."""
        model = self.model
        left, left_summary = encoded(model, "image", images, None)
        right, right_summary = encoded(model, "text", ids, mask)
        for block in model.backbone.blocks:
            left = attend_alone(block, left)
            right = attend_alone(block, right)
            # Each side attends to the other as it was before either attended.
            across_left = attend_across(block, left, right)
            across_right = attend_across(block, right, left)
            left = mix(block, across_left)
            right = mix(block, across_right)
        left = Stream(model.backbone.norm(left.x), left.mask)
        right = Stream(model.backbone.norm(right.x), right.mask)
        x = model.read("image", left, left_summary)
        y = model.read("text", right, right_summary)
        return model.match_head(x, y)


class Describe(nn.Module):
    """Inputs of one modality -> what text is written beside: keys and values (layers, B, H, S, D / H) and mask (B, S).

    Args:
        model: of `prepare`, which writes text.
        modality: image or audio.
    """

    def __init__(self, model: MultimodalModel, modality: str) -> None:
        super().__init__()
        self.model = model
        self.modality = modality

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """inputs (B, …), mask (B, …) bool -> keys and values (layers, B, H, S, D / H), mask (B, S) bool."""
        stream, _ = encoded(self.model, self.modality, inputs, mask)
        keys = []
        values = []
        for block in self.model.backbone.blocks:
            stream = attend_alone(block, stream)
            k, v = block.keys_values(stream.x)
            keys.append(k)
            values.append(v)
            stream = mix(block, stream)
        return torch.stack(keys), torch.stack(values), stream.mask


class DecodeStep(nn.Module):
    """One token of B texts behind a cache -> logits (B, V) of the next, and the cache with it.

    Args:
        model: of `prepare`, which writes text.
    """

    def __init__(self, model: MultimodalModel) -> None:
        super().__init__()
        self.model = model
        self.writer = Writer(model)

    def forward(
        self, ids: Tensor, at: Tensor, keys: Tensor, values: Tensor, beside: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read one token of every text.

        Args:
            ids: (B, 1) int64.
            at: (B,) int64, their positions.
            keys: (layers, B, H, C, D / H), the cache; positions from `at` on are not read.
            values: as keys.
            beside: keys, values (layers, B, H, S, D / H) and mask (B, S) bool, as `Describe` makes them.

        Returns:
            logits (B, V), keys and values (layers, B, H, C, D / H) with the token's.
        """
        memory = StepMemory(keys, values, at)
        condition = Condition(list(beside[0].unbind()), list(beside[1].unbind()), beside[2], beside[2].any(1))
        out = self.writer.read(ids, None, memory, at[:, None], condition)
        return self.writer.next_logits(out.x[:, 0]), torch.stack(memory.keys), torch.stack(memory.values)


class StepMemory:
    """A cache whose tensors come in and go out, of a fixed context; a `Memory` of `mm.model.causal`.

    Args:
        keys: (layers, B, H, C, D / H).
        values: as keys.
        at: (B,) int64, where the new token of each text is written.
    """

    def __init__(self, keys: Tensor, values: Tensor, at: Tensor) -> None:
        self.held = (keys, values)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        place = torch.arange(keys.shape[3], device=keys.device)
        self.mask = place <= at[:, None, None]
        self.here = place[:, None] == at[:, None, None, None]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, 1, H, D / H) -> those of everything read, (B, H, C, D / H) each."""
        for held, new, kept in zip(self.held, (keys, values), (self.keys, self.values), strict=True):
            kept.append(torch.where(self.here, new.transpose(1, 2), held[layer]))
        return self.keys[layer], self.values[layer]


def prepare(model: MultimodalModel, experts: Experts) -> MultimodalModel:
    """A copy of a model for inference, in evaluation mode and without what an inference does not read.

    Args:
        model: which is not changed.
        experts: makes the body of each mixture's experts.

    Raises:
        ValueError: the model has a bias towards terms.
    """
    if model.terms is not None:
        raise UserError(
            "a model with a bias towards terms is not exported: its search for terms is no tensor operation"
        )
    found: Any = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for number, block in enumerate(found.backbone.blocks):
        block.moe = InferenceMoE(block.moe, experts(block.moe, f"backbone.blocks.{number}.moe"))
    for name, module in list(found.named_modules()):
        if isinstance(module, Center):
            found.set_submodule(name, FixedCenter(module))
    for encoder in found.encoders.values():
        encoder.decoder = None
    if "audio" in found.encoders:
        audio = found.encoders["audio"]
        audio.log_mel = LogMelByProducts(audio.log_mel)
    return found


def embed(model: MultimodalModel, modality: str, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Inputs (B, …) and mask (B, …) of one modality -> unit vectors (B, E)."""
    stream, summary = encoded(model, modality, inputs, mask)
    for block in model.backbone.blocks:
        stream = mix(block, attend_alone(block, stream))
    stream = Stream(model.backbone.norm(stream.x), stream.mask)
    return model.read(modality, stream, summary)


def encoded(model: MultimodalModel, modality: str, inputs: Tensor, mask: Tensor | None) -> tuple[Stream, Tensor]:
    """Inputs (B, …) through their encoder -> tokens (B, T, D), tagged with their modality, and the summary (B, F)."""
    encoder = model.encoders[modality]
    output, _ = encoder.bottleneck(encoder.features(inputs, mask))
    x = output.tokens + model.backbone.modality[modality]
    return Stream(x, output.mask), output.summary


def attend_alone(block: Any, stream: Stream) -> Stream:
    """Self-attention of one stream (B, T, D), added."""
    attention = block.self_attention
    q, k, v = attention.project_rows(block.self_norm(stream.x))
    y = attention.look(q, k.transpose(1, 2), v.transpose(1, 2), seen(stream.mask))
    return Stream(stream.x + y, stream.mask)


def attend_across(block: Any, stream: Stream, other: Stream) -> Stream:
    """Cross-modal attention of one stream (B, T, D) to another (B, S, D), added."""
    attention = block.cross_attention
    q = attention.queries(block.cross_norm(stream.x))
    k, v = block.keys_values(other.x)
    y = attention.look(q, k, v, seen(other.mask))
    return Stream(stream.x + y, stream.mask)


def mix(block: Any, stream: Stream) -> Stream:
    """The experts of every token of a stream (B, T, D), added at real ones."""
    layout = Layout([], [], None, stream.mask.flatten(), None)
    out = block.mix_experts(stream.x.flatten(0, 1), layout)
    return Stream(out.x.view_as(stream.x), stream.mask)


def seen(mask: Tensor) -> Tensor:
    """mask (B, S) bool -> (B, 1, S), all of a row where none is real, so that a softmax is defined."""
    return (mask | ~mask.any(1, keepdim=True))[:, None]


def linear_of(weight: Tensor) -> nn.Linear:
    """A linear layer of this weight (O, I), without bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return layer
