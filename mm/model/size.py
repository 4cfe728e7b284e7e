"""How many parameters a model has, and how many of them work on a token."""

from mm.model.multimodal import MultimodalModel


def count_parameters(model: MultimodalModel) -> tuple[int, int]:
    """Count parameters.

    Returns:
        all of them, and those active per token: K of E routed experts, everything else.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = 0
    for block in model.backbone.blocks:
        moe = block.moe
        routed = moe.w_in.numel() + moe.w_out.numel()
        idle += routed - routed * moe.config.top_k // moe.config.num_experts
    return total, total - idle
