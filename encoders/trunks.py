"""Trunks: from scratch, `timm/<name>`, `open_clip/<name>[:tag]`, `hf/<name or folder>`; weights from a local file
where given.

A trunk maps raw inputs to Features (B, T, F). The libraries of pretrained trunks are imported where a trunk of theirs
is built: importing this module costs no more than torch.
"""

import importlib.resources
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from encoders.base import Features, Trunk
from encoders.state import load_weights

NO_WEIGHTS = "none"
"""As `weights`: build the architecture and leave it random, because its tensors come from elsewhere."""


class ConvTrunk(Trunk):
    """From scratch: images (B, 3, H, W) -> tokens (B, H/s · W/s, F) at stride s.

    A patch-4 stem at half width, then halvings to the stride, ConvNeXt blocks (Liu et al. 2022) on both sides.
    """

    def __init__(self, size: int, width: int, depth: int, stride: int) -> None:
        super().__init__()
        if stride not in (8, 16, 32) or size % stride:
            raise ValueError(
                f"image.stride={stride}: the scratch trunk has 8, 16 and 32, and image.size={size} must be a multiple"
            )
        self.width = width
        self.grid = size // stride
        self.tokens = self.grid**2
        self.mean = (0.5,) * 3
        self.std = (0.25,) * 3
        self.stem = nn.Conv2d(3, width // 2, 4, stride=4)
        self.early = nn.Sequential(*(ConvNeXtBlock(width // 2) for _ in range(depth // 2)))
        halvings = (stride // 4).bit_length() - 1
        widths = [width // 2] + [width] * halvings
        self.halve = nn.Sequential(*(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths)))
        self.late = nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth)))

    def forward(self, image: Tensor) -> Features:
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        x = self.late(self.halve(self.early(x)))
        x = x.flatten(2).transpose(1, 2)
        return Features(x, x.new_ones(x.shape[:2], dtype=torch.bool))


class ConvNeXtBlock(nn.Module):
    """(B, C, H, W) -> same: depthwise 5×5, norm, pointwise expansion by 4."""

    def __init__(self, width: int, kernel: int = 5) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        y = self.project(nn.functional.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class TimmTrunk(Trunk):
    """A timm model's `forward_features` as tokens: images (B, 3, H, W) -> (B, P + T, F), P prefix tokens (CLS) first.

    `pool` averages the patch grid in pool × pool windows: fewer tokens for the backbone, the prefix untouched.
    """

    model: Any

    def __init__(self, name: str, size: tuple[int, int], weights: str | None, pool: int = 1, channels: int = 3) -> None:
        super().__init__()
        import timm

        known = name.split(".")[0]
        if not timm.is_model(known):
            raise ValueError(f"timm has no model named {name!r}: see timm.list_models({known[:6]!r} + '*')")
        with fetching(f"timm/{name}"):
            self.model = timm.create_model(name, pretrained=weights is None, num_classes=0, in_chans=channels)
        if weights not in (None, NO_WEIGHTS):
            load_weights(self.model, weights)
        if hasattr(self.model, "set_input_size"):
            self.model.set_input_size(img_size=size)
        self.size = size
        self.pool = pool
        self.width = self.model.num_features
        self.mean = self.model.pretrained_cfg["mean"]
        self.std = self.model.pretrained_cfg["std"]
        self.prefix = getattr(self.model, "num_prefix_tokens", 0)
        with torch.no_grad():
            self.tokens = self.eval()(torch.zeros(1, channels, *size)).tokens.shape[1]

    def forward(self, image: Tensor) -> Features:
        x = self.model.forward_features(image)
        if x.ndim == 4:  # convolutional: (B, F, h, w), or (B, h, w, F) in the Swin family
            x = x.flatten(2).transpose(1, 2) if x.shape[1] == self.width else x.flatten(1, 2)
        patches = pool_grid(x[:, self.prefix :], self.pool)
        x = torch.cat([x[:, : self.prefix], patches], 1)
        return Features(x, x.new_ones(x.shape[:2], dtype=torch.bool))


def pool_grid(patches: Tensor, pool: int) -> Tensor:
    """Average a square grid of tokens in windows: (B, g·g, F) -> (B, (g/pool)², F). The grid's remainder is dropped."""
    if pool == 1:
        return patches
    batch, count, width = patches.shape
    grid = round(count**0.5)
    x = patches.transpose(1, 2).reshape(batch, width, grid, grid)
    return nn.functional.avg_pool2d(x, pool).flatten(2).transpose(1, 2)


class OpenClipImageTrunk(Trunk):
    """The image tower of an open_clip model: images (B, 3, H, W) -> patch tokens (B, T, F) and its pooled vector as
    token 0."""

    model: Any

    def __init__(self, name: str, weights: str | None) -> None:
        super().__init__()
        self.model = open_clip_model(name, weights).visual
        self.model.output_tokens = True
        self.mean = self.model.image_mean
        self.std = self.model.image_std
        size = self.model.image_size
        if not isinstance(size, tuple):
            size = (size, size)
        with torch.no_grad():
            pooled, tokens = self.eval().model(torch.zeros(1, 3, *size))
        self.width = tokens.shape[-1]
        self.prefix = int(pooled.shape[-1] == self.width)
        self.tokens = self.prefix + tokens.shape[1]

    def forward(self, image: Tensor) -> Features:
        pooled, tokens = self.model(image)
        if self.prefix:
            tokens = torch.cat([pooled[:, None], tokens], 1)
        return Features(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


class OpenClipTextTrunk(Trunk):
    """The text tower of an open_clip model: token ids (B, L), mask (B, L) -> (B, L, F)."""

    model: Any

    def __init__(self, name: str, weights: str | None) -> None:
        super().__init__()
        self.model = open_clip_model(name, weights, text=True).text
        self.model.output_tokens = True
        self.width = self.model.token_embedding.embedding_dim
        self.tokens = self.model.context_length
        self.vocabulary_size = self.model.token_embedding.num_embeddings

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        length = ids.shape[1]
        _, tokens = self.model(nn.functional.pad(ids, (0, self.tokens - length)))
        return Features(tokens[:, :length], mask)

    def embedding(self) -> Tensor:
        return self.model.token_embedding.weight


class HuggingFaceTextTrunk(Trunk):
    """A transformers encoder, from a hub or a local folder: token ids (B, L), mask (B, L) -> last hidden states
    (B, L, F)."""

    model: Any

    def __init__(self, name: str, weights: str | None) -> None:
        super().__init__()
        transformers = require_transformers(name)
        folder = hugging_face_folder(name)
        with fetching(f"hf/{name}"):
            if weights == NO_WEIGHTS:
                config = transformers.AutoConfig.from_pretrained(folder)
                self.model = transformers.AutoModel.from_config(config, add_pooling_layer=False)
            else:
                self.model = transformers.AutoModel.from_pretrained(
                    folder, use_safetensors=True, add_pooling_layer=False
                )
        self.width = self.model.config.hidden_size
        self.tokens = self.model.config.max_position_embeddings
        self.vocabulary_size = self.model.config.vocab_size

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features(by_length(self.read, ids, mask), mask)

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def embedding(self) -> Tensor:
        return self.model.get_input_embeddings().weight


def by_length(read: Callable[[Tensor, Tensor], Tensor], ids: Tensor, mask: Tensor, rows: int = 64) -> Tensor:
    """`read` over ids (B, L) and mask (B, L) -> (B, L, F), `rows` captions of like length at a time, each group cut
    where its longest ends; zeros beyond. The captions of a batch are mostly half as long as its longest.

    Padding must follow the real tokens.
    """
    if len(ids) <= rows:
        return read(ids, mask)
    lengths = mask.sum(1)
    order = lengths.argsort()
    groups = []
    for group in order.split(rows):
        length = int(lengths[group[-1]])
        x = read(ids[group, :length], mask[group, :length])
        groups.append(nn.functional.pad(x, (0, 0, 0, ids.shape[1] - length)))
    return torch.cat(groups)[order.argsort()]


def open_clip_model(name: str, weights: str | None, text: bool = False) -> Any:
    """`ViT-B-32` or `ViT-B-32:laion2b_s34b_b79k`.

    A local `weights` file replaces the tag; with neither, weights are random and logged so.
    """
    import open_clip

    model, _, tag = name.partition(":")
    if model not in open_clip.list_models():
        raise ValueError(f"open_clip has no model named {model!r}: see open_clip.list_models()")
    source = None if weights == NO_WEIGHTS else weights or tag or None
    with fetching(f"open_clip/{name}"):
        # open_clip moves the model to a device of its own choice unless told: on the meta device that would fail.
        return open_clip.create_model(
            model, source, device=torch.get_default_device(), force_custom_text=text, weights_only=True
        )


@contextmanager
def fetching(trunk: str) -> Iterator[None]:
    """A library's failure to find or fetch weights, as one line that names the trunk."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"trunk {trunk} could not be loaded ({reason}): name a local file or folder, or connect to its hub"
        ) from error


def hugging_face_folder(name: str) -> str:
    """A folder or hub name as it is; `package:NAME/FOLDER` is a folder inside an installed Python package."""
    if not name.startswith("package:"):
        return name
    package, _, inner = name.removeprefix("package:").partition("/")
    try:
        folder = importlib.resources.files(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"text.trunk names the package {package!r}, which is not installed: pip install {package.replace('_', '-')}"
        ) from error
    return str(folder.joinpath(inner))


def require_transformers(name: str):  # type: ignore[no-untyped-def]  # a module
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ValueError(f"the trunk hf/{name} needs transformers: pip install 'mm-align[full]'") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers
