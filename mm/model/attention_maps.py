"""Where one side of a pair looks in the other: cross-modal attention computed again, for a few pairs, to be shown."""

import torch
from torch import Tensor

from mm.model.multimodal import MatchInput, MultimodalModel, streams_of
from mm.model.packed import pack, spans_of


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
def attends_across(model: MultimodalModel) -> bool:
    """Whether cross-modal attention changes anything: it is zero-initialised, and a schedule without matching leaves
    it so."""
    for block in model.backbone.blocks:
        # Through its forward: an adapter or packed weights may stand in the place of the projection.
        directions = torch.eye(block.cross_attention.q_proj.in_features, device=block.cross_norm.weight.device)
        if bool(block.cross_attention.out_proj(directions).any()):
            return True
    return False
