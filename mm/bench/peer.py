"""open_clip's CLIP and its own loss, as large as the run that it is timed beside."""

from itertools import cycle

import open_clip
import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from kernels.timing import Run as Step
from mm.artifacts.run import Run
from mm.batch import Batch
from mm.model.multimodal import MultimodalModel
from mm.model.size import count_parameters

HEAD_WIDTH = 32
"""Of the transformers' attention."""


def peer_step(run: Run, batches: list[Batch], precision: torch.autocast) -> Step:
    """One step of open_clip's CLIP and ClipLoss after the other.

    Args:
        run: what it is timed beside, whose learning rate, clipping and caption length it has.
        batches: where the run is; it reads their images, and the first caption of each.
        precision: of the forward and of the loss.
    """
    config = run.config
    length = config.text.max_tokens
    size = batches[0].inputs["image"].shape[-1]
    model = build_peer(run, size).to(run.device)
    loss = ClipLoss()
    # On a GPU the step can then be captured as a CUDA graph; the fused kernel is the same.
    capturable = run.device.type == "cuda"
    rate = config.optim.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True, capturable=capturable)
    pairs = [first_pairs(batch) for batch in batches]
    turn = cycle(pairs)

    def step() -> None:
        images, captions = next(turn)
        padded = nn.functional.pad(captions, (0, length - captions.shape[1]))
        with precision:
            found = loss(*model(images, padded))
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_peer(run: Run, size: int) -> CLIP:
    """Transformers as wide as the run's backbone, and so deep that they have as many parameters as each of the run's
    towers uses. size: of the images."""
    config = run.config
    width = config.model.backbone.width
    image_layers = tower_layers(run.model, "image", width)
    text_layers = tower_layers(run.model, "text", width)
    patches = round(run.model.encoders["image"].trunk.tokens ** 0.5)
    vision = CLIPVisionCfg(
        layers=image_layers, width=width, head_width=HEAD_WIDTH, patch_size=size // patches, image_size=size
    )
    text = CLIPTextCfg(
        context_length=config.text.max_tokens,
        vocab_size=open_clip.SimpleTokenizer().vocab_size,
        width=width,
        heads=width // HEAD_WIDTH,
        layers=text_layers,
    )
    print(f"open_clip: transformers of width {width}, {image_layers} (image) and {text_layers} layers")
    return CLIP(config.model.embedding, vision, text)


def first_pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """A batch of B images -> images (B, 3, H, W) float32 in [-1, 1], and the first caption of each (B, L) int64."""
    images = batch.inputs["image"]
    scaled = images.float().div(127.5).sub(1)
    captions = batch.inputs["text"]
    return scaled, captions[: len(images)]  # the first B rows are one caption of each


def tower_layers(model: MultimodalModel, modality: str, width: int) -> int:
    """How many layers of a transformer of this width, 12 D² parameters each, have as many as one of our towers uses."""
    layers = tower_parameters(model, modality) / (12 * width**2)
    return max(1, round(layers))


def tower_parameters(model: MultimodalModel, modality: str) -> int:
    """Parameters one modality's embedding uses: its encoder without token embeddings, active experts, its heads."""
    total, active = count_parameters(model)
    idle = total - active
    used = numbers_of(model.backbone) - idle
    encoder = model.encoders[modality]
    for part in (encoder.trunk, encoder.bottleneck, model.pool[modality], model.project[modality]):
        used += numbers_of(part)
        for module in part.modules():
            if isinstance(module, nn.Embedding):
                used -= numbers_of(module)
    return used


def numbers_of(module: nn.Module) -> int:
    """How many its parameters hold."""
    return sum(parameter.numel() for parameter in module.parameters())
