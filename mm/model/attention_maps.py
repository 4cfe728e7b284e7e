"""Where words look in what they describe: cross-modal attention computed again, for a few captions, to be shown."""

import torch
from torch import Tensor

from mm.model.causal import Condition, Whole
from mm.model.multimodal import MatchInput, MultimodalModel, streams_of
from mm.model.packed import pack, spans_of
from mm.model.writer import Writer


@torch.inference_mode()
def cross_attention_maps(model: MultimodalModel, pair: MatchInput) -> Tensor:
    """How much each token of the right side attends to each token of the left side when both are read together.

    Args:
        model: in evaluation mode.
        pair: N samples on either side.

    Returns:
        (N, layers, heads, T_right, T_left) float32; a row sums to one over the real tokens of the left side.
    """
    reading = streams_of({pair.a: pair.left, pair.b: pair.right})
    backbone = model.backbone
    tagged = [backbone.tagged(reading)]
    x, layout = pack(tagged, backbone.modalities, fuse=True)
    own = spans_of(tagged, backbone.modalities)[0, pair.b]
    (look,) = [look for look in layout.across if look.queries == own]
    found = []
    for block in backbone.blocks:
        out, alone = block(x, layout)
        found.append(block.cross_attention.weights(block.cross_norm(alone), look))
        x = out.x
    return torch.stack(found, 1)


@torch.inference_mode()
def written_attention_maps(writer: Writer, ids: Tensor, condition: Condition) -> Tensor:
    """How much of each token of the condition went into writing each token of texts.

    Args:
        writer: its model in evaluation mode.
        ids: (N, T) int64, whole texts of equal length, from the start token on.
        condition: N sequences of S tokens.

    Returns:
        (N, layers, heads, T - 1, S) float32: row t is of what was read when token t + 1 was written, and sums to one
        over the real tokens of the condition.
    """
    entered: list[Tensor] = []
    hooks = []
    for block in writer.blocks:
        hooks.append(block.cross_norm.register_forward_hook(lambda norm, given, out: entered.append(out)))
    try:
        read = ids[:, :-1]
        real = torch.ones_like(read, dtype=torch.bool)
        writer.read(read, real, Whole(real), torch.arange(read.shape[1], device=read.device), condition)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for block, keys, x in zip(writer.blocks, condition.keys, entered, strict=True):
        attention = block.cross_attention
        found.append(attention.look_weights(attention.queries(x), keys, condition.mask[:, None]))
    return torch.stack(found, 1)


@torch.inference_mode()
def attends_across(model: MultimodalModel) -> bool:
    """Whether cross-modal attention changes anything: it is zero-initialised, and a schedule without matching leaves
    it so."""
    for block in model.backbone.blocks:
        # Through its forward: an adapter or packed weights may stand in the place of the projection.
        directions = torch.eye(block.cross_attention.q_proj.in_features, device=block.cross_norm.weight.device)
        if bool(block.cross_attention.out_proj(directions).any()):
            return True
    return False
