"""A finished run without the experts that some modalities have no use for, as its own training set says."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor

from kernels.errors import UserError
from mm.artifacts.run import Run, rebuilt
from mm.compress.prune import experts_to_keep, kept_share
from mm.data.module import AlignData
from mm.device import autocast

logger = logging.getLogger(__name__)
BATCHES = 64
"""Of samples, and of captions, that say which experts are needed."""
OF_EXPERTS = ("router.affinity", "router.bias", "w_in", "w_out")
"""Tensors of a mixture whose first dimension counts its experts."""


def pruned(run: Run, data: AlignData, modalities: Sequence[str], share: float) -> Run:
    """A run with fewer experts a layer.

    Args:
        run: which is not changed.
        data: its own set, which has been set up; features of frozen trunks are there.
        modalities: that are kept: what others need is not asked.
        share: of a modality's assignments that may be lost, in [0, 1).

    Returns:
        a run in evaluation mode; its settings say how many experts are left.

    Raises:
        UserError: the run does not read such a modality, or its training set has none of it.
    """
    known = run.model.backbone.modalities
    if unknown := set(modalities) - set(run.model.modalities):
        raise UserError(f"prune: {min(unknown)} is not read by this run, which has {', '.join(run.model.modalities)}")
    load = training_load(run, data)
    moe = run.config.model.backbone.moe
    keep = experts_to_keep(load, [known.index(m) for m in modalities], share, moe.top_k)
    for modality, stayed in zip(known, kept_share(load, keep).tolist(), strict=True):
        if modality in run.model.modalities:
            logger.info("experts that stay received %.2f %% of the assignments of %s", 100 * stayed, modality)
    logger.info("pruned: %d of %d experts stay in every layer", len(keep[0]), moe.num_experts)
    backbone = replace(run.config.model.backbone, moe=replace(moe, num_experts=len(keep[0])))
    config = replace(run.config, model=replace(run.config.model, backbone=backbone))
    return rebuilt(config, without_experts(run.state_dict(), keep)).to(run.device)


def without_experts(state: dict[str, Tensor], keep: Sequence[Tensor]) -> dict[str, Tensor]:
    """A state dict with the experts that stay, layer by layer."""
    found = dict(state)
    for layer, kept in enumerate(keep):
        for name in OF_EXPERTS:
            whole = f"backbone.blocks.{layer}.moe.{name}"
            found[whole] = state[whole][kept.to(state[whole].device)]
    return found


@torch.inference_mode()
def training_load(run: Run, data: AlignData) -> Tensor:
    """Assignments (L, M, E) of the first batches of the run's training split, on the CPU."""
    run.eval()
    split = data.config.train
    size = run.config.eval.batch_size
    view = data.eval_view(data.train)
    samples = islice(data.sample_batches(view, split, size), BATCHES)
    captions = islice(data.caption_batches(view, split, size), BATCHES)
    load = torch.zeros(())
    for batch in chain(samples, captions):
        with autocast(run.config.train.precision, run.device):
            load = load + run.model(batch.to(run.device), reconstruct=False).load.cpu()
    return load
