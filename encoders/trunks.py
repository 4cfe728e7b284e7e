"""Trunks: from scratch, `timm/<name>`, `hf/<name or folder>`; weights from a local file where given. open_clip's are in
`clip_towers`.

A trunk maps raw inputs to Features (B, T, F). The libraries of pretrained trunks are imported where a trunk of theirs
is built: importing this module costs no more than torch.
"""

import importlib.metadata
import inspect
import logging
import math
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from encoders.base import Features, Trunk
from encoders.state import load_weights
from kernels import check_namesake
from kernels.errors import UserError


class NoWeights(Enum):
    """As `weights`: build the architecture and leave it random, because its tensors come from elsewhere.

    It is no text, so that no option and no file can ask for a random trunk.
    """

    NO_WEIGHTS = 0


NO_WEIGHTS = NoWeights.NO_WEIGHTS
Weights = str | NoWeights | None
"""A local file, or nothing to fetch, or None for the library's own."""


class ConvTrunk(Trunk):
    """From scratch: images (B, 3, H, W) -> tokens (B, H/s · W/s, F) at stride s.

    A patch-4 stem at half width, then halvings to the stride, ConvNeXt blocks (Liu et al. 2022) on both sides.
    """

    def __init__(self, size: int, width: int, depth: int, stride: int) -> None:
        super().__init__()
        if stride not in (8, 16, 32) or size % stride:
            raise UserError(
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
        if not torch.compiler.is_exporting():
            # An engine chooses a layout itself; ExecuTorch 1.2 flattens this one in another order.
            image = image.contiguous(memory_format=torch.channels_last)
        x = self.stem(image)
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
    """A timm model's `forward_features` as tokens: images (B, C, H, W) -> (B, P + T, F), P prefix tokens (CLS) first,
    then the grid row by row.

    `pool` averages the patch grid in pool × pool windows: fewer tokens for the backbone, the prefix untouched. `size`
    is what the model reads: what was asked for, rounded up to whole patches.
    """

    model: Any

    def __init__(self, name: str, size: tuple[int, int], weights: Weights, pool: int = 1, channels: int = 3) -> None:
        super().__init__()
        import timm

        known = name.split(".")[0]
        if not timm.is_model(known):
            raise UserError(f"timm has no model named {name!r}: see timm.list_models({known[:6]!r} + '*')")
        with fetching(f"timm/{name}"):
            self.model = timm.create_model(name, pretrained=weights is None, num_classes=0, in_chans=channels)
        if isinstance(weights, str):
            load_weights(self.model, weights, classifiers(self.model))
        self.size = whole_patches(self.model, size)
        if hasattr(self.model, "set_input_size"):
            self.model.set_input_size(img_size=self.size)
        self.pool = pool
        self.width = self.model.num_features
        self.mean = self.model.pretrained_cfg["mean"]
        self.std = self.model.pretrained_cfg["std"]
        self.prefix = getattr(self.model, "num_prefix_tokens", 0)
        with torch.no_grad():
            features = self.eval().model.forward_features(torch.zeros(1, channels, *self.size))
        self.grid = grid_shape(features, self.width, self.prefix, self.size)
        """Rows and columns of tokens, before `pool`."""
        self.tokens = self.prefix + (self.grid[0] // pool) * (self.grid[1] // pool)

    def forward(self, image: Tensor) -> Features:
        x = as_tokens(self.model.forward_features(image), self.width)
        patches = pool_grid(x[:, self.prefix :], self.pool)
        x = torch.cat([x[:, : self.prefix], patches], 1)
        return Features(x, x.new_ones(x.shape[:2], dtype=torch.bool))


def classifiers(model: Any) -> tuple[str, ...]:
    """The names of a timm model's classifiers, which a trunk lacks and files of its weights hold."""
    named = model.pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def square_timm_trunk(name: str, pixels: int, weights: Weights, pool: int = 1) -> TimmTrunk:
    """A timm model for images of `pixels` per side. Raises ValueError where these are not whole patches."""
    trunk = TimmTrunk(name, (pixels, pixels), weights, pool)
    if trunk.size != (pixels, pixels):
        raise UserError(f"timm/{name} reads whole patches: image.size={trunk.size[0]} would be, {pixels} is not")
    return trunk


def whole_patches(model: Any, size: tuple[int, int]) -> tuple[int, int]:
    """A size (height, width), rounded up to multiples of the patches that a timm model cuts, if it cuts any."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if patch is None:
        return size
    height, width = (math.ceil(side / step) * step for side, step in zip(size, patch, strict=True))
    return height, width


def as_tokens(features: Tensor, width: int) -> Tensor:
    """What a timm model's `forward_features` gives -> (B, T, F). Of (B, T, F), (B, F, h, w) of convolutions, and
    (B, h, w, F) of the Swin family."""
    if features.ndim == 3:
        return features
    return features.flatten(2).transpose(1, 2) if features.shape[1] == width else features.flatten(1, 2)


def grid_shape(features: Tensor, width: int, prefix: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the tokens behind the prefix; of (1, T, F), in the ratio of the image's sides."""
    if features.ndim == 4:
        rows, columns = features.shape[2:] if features.shape[1] == width else features.shape[1:3]
        return rows, columns
    count = features.shape[1] - prefix
    columns = round((count * size[1] / size[0]) ** 0.5)
    return count // columns, columns


def pool_grid(patches: Tensor, pool: int) -> Tensor:
    """Average a square grid of tokens in windows: (B, g·g, F) -> (B, (g/pool)², F). The grid's remainder is dropped."""
    if pool == 1:
        return patches
    batch, count, width = patches.shape
    grid = round(count**0.5)
    x = patches.transpose(1, 2).reshape(batch, width, grid, grid)
    return nn.functional.avg_pool2d(x, pool).flatten(2).transpose(1, 2)


class HuggingFaceTextTrunk(Trunk):
    """A transformers encoder, or the encoder of an encoder-decoder (T5), from a hub or a local folder, in float32:
    token ids (B, L), mask (B, L) -> last hidden states (B, L, F)."""

    model: Any

    def __init__(self, name: str, weights: Weights) -> None:
        super().__init__()
        if isinstance(weights, str):
            raise UserError(f"text.weights={weights}: hf/{name} has its weights in its folder; leave text.weights out")
        transformers = require_transformers(f"hf/{name}")
        folder = hugging_face_folder(name)
        with fetching(f"hf/{name}"):
            # A folder may name code of its own: transformers would ask whether to execute it.
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            build = encoder_class(transformers, config, name)
            options = {}
            if "add_pooling_layer" in inspect.signature(build).parameters:
                options["add_pooling_layer"] = False
            if weights is NO_WEIGHTS:
                self.model = build(config, **options)
            else:
                # transformers would take the file's type: half precision does not train.
                self.model = build.from_pretrained(
                    folder, config=config, use_safetensors=True, dtype=torch.float32, **options
                )
        self.width = self.model.config.hidden_size
        self.tokens = positions(self.model)
        self.vocabulary_size = self.model.config.vocab_size

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        return Features(by_length(self.read, ids, mask), mask)

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def embedding(self) -> Tensor:
        return self.model.get_input_embeddings().weight


def encoder_class(transformers: Any, config: Any, name: str) -> Any:
    """The class of transformers that reads text in both directions. Raises ValueError where it knows none."""
    known = transformers.MODEL_MAPPING
    if config.is_encoder_decoder:
        known = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    if type(config) not in known:
        raise UserError(f"transformers has no text encoder for the trunk hf/{name}, a {config.model_type}")
    return known[type(config)]


def positions(model: Any) -> int:
    """How many tokens a transformers encoder reads at most; of relative positions, as in T5, there is no end.

    The RoBERTa family counts its positions from behind the padding's.
    """
    count = getattr(model.config, "max_position_embeddings", None)
    if count is None:
        return sys.maxsize
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return count if padding is None else count - padding - 1


def by_length(read: Callable[[Tensor, Tensor], Tensor], ids: Tensor, mask: Tensor, rows: int = 64) -> Tensor:
    """`read` over ids (B, L) and mask (B, L) -> (B, L, F), `rows` captions of like length at a time, each group cut
    where its longest ends; zeros beyond. The captions of a batch are mostly half as long as its longest.

    Padding must follow the real tokens. A graph that is exported reads all at once: groups depend on values.
    """
    if torch.compiler.is_exporting() or len(ids) <= rows:
        return read(ids, mask)
    lengths = mask.sum(1)
    order = lengths.argsort()
    groups = []
    for group in order.split(rows):
        length = max(int(lengths[group[-1]]), 1)
        x = read(ids[group, :length], mask[group, :length])
        groups.append(nn.functional.pad(x, (0, 0, 0, ids.shape[1] - length)))
    return torch.cat(groups)[order.argsort()]


FAILURES = (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError)
"""What the libraries raise: open_clip a RuntimeError where a download fails, transformers a ValueError at a folder."""
NETWORK = ("httpx", "requests", "urllib3", "huggingface_hub")
"""Packages whose own exceptions come from a network."""


@contextmanager
def fetching(trunk: str) -> Iterator[None]:
    """A library's failure to find, fetch or fit weights, as one line that names the trunk; it logs each attempt.

    timm and open_clip raise RuntimeError of an unknown tag and a failed download, torch of another model's tensors.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if not isinstance(error, FAILURES) and library not in NETWORK:
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"trunk {trunk} could not be loaded ({reason}): name a local file or folder, or connect to its hub"
        ) from error
    finally:
        logging.disable(disabled)


def copied(trunk: str, folder: Path) -> str:
    """The name of an hf/ trunk whose configuration and tokenizer are read from an absolute folder: `hf/<name>@/…`."""
    return f"{original(trunk)}@{folder}"


def original(trunk: str) -> str:
    """The name of a trunk without the folder that `copied` has put behind it."""
    return trunk.partition("@/")[0] if trunk.startswith("hf/") else trunk


def hugging_face_folder(name: str) -> str:
    """Where a trunk's configuration and tokenizer are.

    Args:
        name: a folder or hub name, which stays as it is; `package:NAME/FOLDER`, a folder inside an installed Python
            package; either followed by `@/FOLDER`, see `copied`.

    Raises:
        ValueError: there is no such package, or no such folder in it.
    """
    _, elsewhere, own = name.partition("@/")
    if elsewhere:
        return f"/{own}"
    if not name.startswith("package:"):
        return name
    package, _, inner = name.removeprefix("package:").partition("/")
    # Looked up among the installed distributions: to import the package would execute what a stranger's run names.
    owners = importlib.metadata.packages_distributions().get(package, [])
    for owner in owners:
        folder = Path(str(importlib.metadata.distribution(owner).locate_file(package))) / inner
        if ".." not in Path(inner).parts and folder.is_dir():
            return str(folder)
    if owners:
        raise UserError(f"text.trunk=hf/{name}: the installed package {package} has no folder {inner!r}")
    raise UserError(
        f"text.trunk names the package {package!r}, which is not installed: pip install {package.replace('_', '-')}"
    )


def require_transformers(trunk: str):  # type: ignore[no-untyped-def]  # a module
    check_namesake()
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(f"the trunk {trunk} needs transformers: pip install 'mm-align[full]'") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers
