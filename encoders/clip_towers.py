"""open_clip's towers as trunks, `open_clip/<name>[:tag]`, and its tokenizers.

Each tower reads as in open_clip's own forward: its preprocessing, its activation and its tokenizer are those that its
weights were trained with, or it is refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from encoders.base import Features, Trunk
from encoders.trunks import NO_WEIGHTS, Weights, as_tokens, by_length, fetching, require_transformers
from kernels.errors import UserError


class OpenClipImageTrunk(Trunk):
    """The image tower of an open_clip model: images (B, 3, H, W) -> (B, 1 + T, F), its pooled vector, then its tokens.

    Where the pooled vector and the tokens differ in width, the narrower of them ends in zeros.
    """

    model: Any

    def __init__(self, name: str, weights: Weights) -> None:
        super().__init__()
        self.model = open_clip_model(name, weights).visual
        self.mean, self.std = normalisation(name)
        size = self.model.image_size
        self.size: tuple[int, int] = size if isinstance(size, tuple) else (size, size)
        with torch.no_grad():
            pooled, tokens = self.eval().read(torch.zeros(1, 3, *self.size))
        self.width = max(pooled.shape[-1], tokens.shape[-1])
        self.prefix = 1 + getattr(getattr(self.model, "trunk", None), "num_prefix_tokens", 0)
        self.tokens = 1 + tokens.shape[1]

    def forward(self, image: Tensor) -> Features:
        pooled, tokens = self.read(image)
        x = torch.cat([widened(pooled[:, None], self.width), widened(tokens, self.width)], 1)
        return Features(x, x.new_ones(x.shape[:2], dtype=torch.bool))

    def read(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) -> the tower's own output (B, E), and the tokens (B, T, F) that it pools."""
        model = self.model
        if hasattr(model, "trunk"):  # a timm model in open_clip's clothes: ConvNeXt, SigLIP, EVA
            features = model.trunk.forward_features(image)
            pooled = model.head(model.trunk.forward_head(features))
            return pooled, as_tokens(features, model.trunk.num_features)
        if hasattr(model, "attnpool"):  # CLIP's ResNet
            x = model.stem(image)
            for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
                x = layer(x)
            return model.attnpool(x), x.flatten(2).transpose(1, 2)
        model.output_tokens = True
        return model(image)


def widened(x: Tensor, width: int) -> Tensor:
    """(..., F) -> (..., width), zeros behind."""
    return nn.functional.pad(x, (0, width - x.shape[-1]))


class OpenClipTextTrunk(Trunk):
    """The text tower of an open_clip model: token ids (B, L), mask (B, L) -> (B, L, F).

    A tower without a mask of its own (CLIP, SigLIP) reads its whole context, padded as its own tokenizer pads.
    """

    model: Any

    def __init__(self, name: str, weights: Weights) -> None:
        super().__init__()
        self.model = open_clip_model(name, weights).text
        self.masked = hasattr(self.model, "transformer") and hasattr(self.model, "pooler")
        """Whether it is one of transformers' encoders, which takes a mask."""
        self.padding = 0
        if not self.masked and getattr(self.model, "attn_mask", None) is None:
            # Without a causal mask, what stands behind a caption is read too.
            self.padding = padding_id(open_clip_tokenizer(name))
        self.model.output_tokens = True
        table = self.embedding()
        self.vocabulary_size = table.shape[0]
        self.width = self.model.transformer.config.hidden_size if self.masked else table.shape[1]
        self.tokens = self.model.context_length

    def forward(self, ids: Tensor, mask: Tensor) -> Features:
        if self.masked:
            return Features(by_length(self.read, ids, mask), mask)
        ids = ids.where(mask, self.padding)
        length = ids.shape[1]
        whole = nn.functional.pad(ids, (0, self.tokens - length), value=self.padding)
        _, tokens = self.model(whole)
        return Features(tokens[:, :length], mask)

    def read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, L), mask (B, L) -> (B, L, F), of one of transformers' encoders."""
        return self.model.transformer(input_ids=ids, attention_mask=mask).last_hidden_state

    def embedding(self) -> Tensor:
        if self.masked:
            return self.model.transformer.get_input_embeddings().weight
        return self.model.token_embedding.weight


def open_clip_model(name: str, weights: Weights) -> Any:
    """`ViT-B-32`, `ViT-B-32:laion2b_s34b_b79k` or `ViT-B-32:FILE`, its towers under `visual` and `text`.

    A local `weights` file replaces the tag's download, and the tag says what the file holds; with neither, weights are
    random and logged so. Raises ValueError on a name, a tag or a file that open_clip cannot read, and on weights whose
    activation is not the tower's.
    """
    import open_clip

    model, tag = known_name(name)
    if weights is None and Path(tag).is_file():
        weights = tag
        tag = ""
    if tag:
        check_activation(model, tag)
    source = tag or None
    if weights is NO_WEIGHTS:
        source = None
    elif isinstance(weights, str):
        check_weights_file(model, tag, weights)
        source = weights
    with fetching(f"open_clip/{name}"):
        # open_clip moves the model to a device of its own choice unless told: on the meta device that would fail.
        return open_clip.create_model(
            model, source, device=torch.get_default_device(), force_custom_text=True, weights_only=True
        )


def known_name(name: str) -> tuple[str, str]:
    """A model's name and its tag, "" without one. Raises ValueError where open_clip does not know them."""
    import open_clip

    model, _, tag = name.partition(":")
    if model not in open_clip.list_models():
        raise UserError(f"open_clip has no model named {model!r}: see open_clip.list_models()")
    return model, tag


def check_activation(model: str, tag: str) -> None:
    """Raises ValueError on a tag that is another model's, or whose weights want QuickGELU where the tower has GELU, or
    GELU where it has QuickGELU: they would load without a word. An architecture without a twin has one activation."""
    import open_clip

    plain = model.removesuffix("-quickgelu")
    trained = open_clip.get_pretrained_cfg(model, tag)
    if not trained and plain != model and open_clip.get_pretrained_cfg(plain, tag):
        trained = open_clip.get_pretrained_cfg(plain, tag)
    if not trained:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise UserError(f"open_clip/{model} has no weights named {tag!r}: it has {tags}")
    wanted = bool(trained.get("quick_gelu", False))
    word, other = ("QuickGELU", f"{plain}-quickgelu") if wanted else ("GELU", plain)
    if wanted != has_quick_gelu(model) and other != model and other in open_clip.list_models():
        raise UserError(f"open_clip/{model}:{tag} was trained with {word}: use open_clip/{other}:{tag}")


def has_quick_gelu(model: str) -> bool:
    """Whether the towers of open_clip's architecture have QuickGELU. timm's towers have GELU in either."""
    import open_clip

    return bool(open_clip.get_model_config(model).get("quick_gelu", False))


PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
"""What open_clip says of how images were prepared."""
OPENAI_MARKS = {"input_resolution", "context_length", "vocab_size"}
"""Names in the weights that OpenAI published, all trained with QuickGELU."""


def check_weights_file(model: str, tag: str, weights: str) -> None:
    """Raises ValueError on a file that is missing, or that is OpenAI's and the tower has another activation."""
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist: name the file of open_clip/{model}'s weights")
    if tag or path.suffix != ".safetensors" or has_quick_gelu(model):
        return
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except SafetensorError as error:
        raise UserError(f"weights file {path} cannot be read ({error}): it must be whole") from error
    if names >= OPENAI_MARKS:
        raise UserError(f"{path} holds OpenAI's weights, trained with QuickGELU: use open_clip/{model}-quickgelu")


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels that the weights were trained with; CLIP's where nobody knows."""
    import open_clip

    known = trained_preprocessing(name)
    mean = tuple(known.get("mean") or open_clip.OPENAI_DATASET_MEAN)
    std = tuple(known.get("std") or open_clip.OPENAI_DATASET_STD)
    return mean, std


def trained_preprocessing(name: str) -> dict[str, Any]:
    """How images were prepared for the weights of a model, as open_clip names it: mean, std, resize_mode and others.

    open_clip knows it of its tags and gives a local file CLIP's, whatever the model. Of a file, and of a name without a
    tag, it is therefore what all tags of the model share; nothing where they differ or there are none.
    """
    import open_clip

    model, tag = known_name(name)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag in tags:
        tags = [tag]
    described = []
    for each in tags:
        trained = open_clip.get_pretrained_cfg(model, each)
        described.append({key: trained[key] for key in PREPROCESSING if key in trained})
    if not described or any(other != described[0] for other in described):
        return {}
    return described[0]


def image_transform(name: str, model: Any) -> Callable[[Image], Tensor]:
    """The preprocessing of an open_clip model: image in RGB -> (3, H, W) float32."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = open_clip.get_model_preprocess_cfg(model) | trained_preprocessing(name)
    return image_transform_v2(PreprocessCfg(**settings), is_train=False)


def open_clip_tokenizer(name: str) -> Any:
    """The tokenizer of an open_clip model: its own BPE, or one of transformers' behind `tokenizer`.

    Raises ValueError where there is no such model, or its tokenizer cannot be fetched.
    """
    import open_clip

    model, _ = known_name(name)
    if open_clip.get_model_config(model)["text_cfg"].get("hf_tokenizer_name"):
        require_transformers(f"open_clip/{name}")
    with fetching(f"open_clip/{name}"):
        return open_clip.get_tokenizer(model)


def padding_id(tokenizer: Any) -> int:
    """What a tokenizer of `open_clip_tokenizer` writes behind a caption."""
    inner = getattr(tokenizer, "tokenizer", None)
    return 0 if inner is None else inner.pad_token_id
