"""open_clip's towers give what open_clip's own forward gives, by its own tokenizers; what does not fit is one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from encoders import BottleneckConfig, ImageConfig, ImageEncoder, TextConfig, TextEncoder
from encoders.clip_towers import (
    OpenClipImageTrunk,
    OpenClipTextTrunk,
    image_transform,
    normalisation,
    open_clip_model,
)
from encoders.tokenizer import Tokenizer
from encoders.trunks import NO_WEIGHTS

CAPTIONS = ["a cat", "a dog on a red mat"]
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
TIMM_VIT = {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160}
CONVNEXT = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
VISION = {
    "tiny-vit": ({"embed_dim": 24, "vision_cfg": VIT}, 1 + 4, 32),
    "tiny-vit-wide": ({"embed_dim": 48, "vision_cfg": VIT}, 1 + 4, 48),
    "tiny-rn": ({"embed_dim": 24, "vision_cfg": RESNET}, 1 + 4, 256),
    "tiny-convnext": ({"embed_dim": 24, "vision_cfg": CONVNEXT}, 1 + 4, 64),
    "tiny-siglip": ({"embed_dim": 96, "vision_cfg": TIMM_VIT}, 1 + 1 + 100, 96),
}
"""By name: the model, and the tokens and the width of its image tower. timm's tiny model has a CLS token too."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: Callable[..., Any]) -> Path:
    """Tiny models, known to open_clip under names of their own; SigLIP's tokenizer pads with the end token."""
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder / "siglip-words", pad_token="</s>")
    write_tokenizer(folder / "clipa-words")
    siglip = TEXT | {
        "vocab_size": 9,
        "no_causal_mask": True,
        "pool_type": "last",
        "hf_tokenizer_name": str(folder / "siglip-words"),
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    clipa = siglip | {"hf_tokenizer_name": str(folder / "clipa-words"), "tokenizer_kwargs": {"strip_sep_token": True}}
    vision = {name: model for name, (model, *_) in VISION.items()}
    texts = {"tiny-siglip": siglip, "tiny-clipa": clipa}
    for name in vision.keys() | texts.keys():
        model = vision.get(name, vision["tiny-vit"])
        (folder / f"{name}.json").write_text(json.dumps(model | {"text_cfg": texts.get(name, TEXT)}))
    open_clip.add_model_config(folder)
    return folder


@pytest.fixture
def weights(models: Path, tmp_path: Path) -> Callable[[str], tuple[Any, str]]:
    """weights("tiny-vit") -> the model with its text tower apart, and the file of its weights."""

    def write(name: str) -> tuple[Any, str]:
        torch.manual_seed(0)
        model = open_clip.create_model(name, force_custom_text=True).eval()
        for parameter in model.parameters():  # norms and projections that begin as the identity
            parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
        return model, str(tmp_path / f"{name}.safetensors")

    return write


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", VISION)
def test_the_pooled_vector_is_open_clips_own(weights: Callable[[str], tuple[Any, str]], name: str) -> None:
    """It is the first token, and the others are what it pools."""
    model, file = weights(name)
    _, tokens, width = VISION[name]
    trunk = OpenClipImageTrunk(name, file)
    with torch.no_grad():
        expected = model.visual(images(trunk.size[0]))
        found = trunk.eval()(images(trunk.size[0]))
    assert found.tokens.shape == (2, tokens, width) == (2, trunk.tokens, trunk.width)
    assert trunk.prefix == 1 + (name == "tiny-siglip")
    torch.testing.assert_close(found.tokens[:, 0, : expected.shape[1]], expected, rtol=1e-5, atol=1e-5)
    assert not found.tokens[:, 0, expected.shape[1] :].any() and found.mask.all()


def test_the_tokens_are_open_clips_own(weights: Callable[[str], tuple[Any, str]]) -> None:
    model, file = weights("tiny-vit")
    trunk = OpenClipImageTrunk("tiny-vit", file).eval()
    with torch.no_grad():
        grid = model.visual.forward_intermediates(images(32), indices=1, normalize_intermediates=True)
        found = trunk(images(32)).tokens[:, 1:]
    expected = grid["image_intermediates"][0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    model, file = weights("tiny-rn")
    trunk = OpenClipImageTrunk("tiny-rn", file).eval()
    with torch.no_grad():
        grid = model.visual.forward_intermediates(images(64), indices=1)
        found = trunk(images(64)).tokens[:, 1:]
    expected = grid["image_intermediates"][0].flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_image_encoder_stands_on_a_tower_and_reads_its_size(models: Path) -> None:
    config = ImageConfig(trunk="open_clip/tiny-rn", weights=NO_WEIGHTS, size=64)
    out = ImageEncoder(config, BottleneckConfig(), 32)(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert out.tokens.shape == (2, 5, 32) and out.summary.shape == (2, 2 * 256)
    with pytest.raises(ValueError, match=r"image.size=64, but open_clip/tiny-vit reads 32 pixels per side"):
        ImageEncoder(ImageConfig(trunk="open_clip/tiny-vit", weights=NO_WEIGHTS), BottleneckConfig(), 32)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-siglip", "tiny-clipa"])
def test_captions_are_read_as_open_clip_reads_them(weights: Callable[[str], tuple[Any, str]], name: str) -> None:
    """By its own tokenizer, in a context that this pads; a longer neighbour in the batch changes nothing."""
    model, file = weights(name)
    model.text.output_tokens = True
    trunk = OpenClipTextTrunk(name, file).eval()
    tokenizer = Tokenizer(f"open_clip/{name}", 12)
    ids, mask = tokenizer(CAPTIONS)
    with torch.no_grad():
        theirs = open_clip.get_tokenizer(name)(CAPTIONS)
        _, expected = model.text(theirs)
        found = trunk(ids, mask).tokens
        alone = trunk(*tokenizer(CAPTIONS[:1])).tokens
    length = ids.shape[1]
    assert torch.equal(ids[mask], theirs[:, :length][mask]) and mask.sum(1).tolist() == expected_lengths(name)
    torch.testing.assert_close(found[mask], expected[:, :length][mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone[0], found[0, : alone.shape[1]], rtol=1e-5, atol=1e-5)
    junk = ids.where(mask, 5)
    with torch.no_grad():
        assert torch.equal(trunk(junk, mask).tokens[mask], found[mask])


def expected_lengths(name: str) -> list[int]:
    """CLIP has a start and an end token, the others an end token."""
    ends = 2 if name == "tiny-vit" else 1
    return [2 + ends, 6 + ends]


def test_a_foreign_tokenizer_cleans_and_decodes_as_it_was_trained(models: Path) -> None:
    tokenizer = Tokenizer("open_clip/tiny-siglip", 12)
    assert torch.equal(tokenizer(["A Cat!"])[0], tokenizer(["a cat"])[0])
    assert tokenizer.word_ids("A CAT") == [3, 4] and tokenizer.unknown == 2
    assert tokenizer.decode([3, 4, 1]) == "a cat"


def test_a_text_encoder_stands_on_a_tower(models: Path) -> None:
    config = TextConfig(trunk="open_clip/tiny-siglip", weights=NO_WEIGHTS, max_tokens=12)
    encoder = TextEncoder(config, BottleneckConfig(), 32)
    ids, mask = Tokenizer(config.trunk, 12)(CAPTIONS)
    out = encoder(ids, mask)
    assert out.losses["reconstruction"].isfinite() and encoder.reconstruct(out.codes).shape == (*ids.shape, 9)
    with pytest.raises(ValueError, match="reads at most 16"):
        TextEncoder(
            TextConfig(trunk="open_clip/tiny-siglip", weights=NO_WEIGHTS, max_tokens=17), BottleneckConfig(), 32
        )


def test_a_tower_of_transformers_reads_by_its_mask(
    models: Path, write_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.RobertaConfig(vocab_size=9, max_position_embeddings=20, pad_token_id=0, **sizes)
    transformers.RobertaModel(config).save_pretrained(tmp_path / "roberta")
    write_tokenizer(tmp_path / "roberta")
    text = {
        "hf_model_name": str(tmp_path / "roberta"),
        "hf_tokenizer_name": str(tmp_path / "roberta"),
        "hf_proj_type": "mlp",
        "context_length": 16,
    }
    (models / "tiny-roberta.json").write_text(json.dumps(VISION["tiny-vit"][0] | {"text_cfg": text}))
    open_clip.add_model_config(models)
    trunk = OpenClipTextTrunk("tiny-roberta", NO_WEIGHTS).eval()
    tokenizer = Tokenizer("open_clip/tiny-roberta", 12)
    ids, mask = tokenizer(CAPTIONS)
    with torch.no_grad():
        found = trunk(ids, mask).tokens
        alone = trunk(*tokenizer(CAPTIONS[:1])).tokens
        expected = trunk.model.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    assert trunk.width == 16 and trunk.embedding().shape == (9, 16)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(alone[0], found[0, : alone.shape[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-32:openai", "was trained with QuickGELU: use open_clip/ViT-B-32-quickgelu:openai"),
        ("ViT-B-32-quickgelu:laion2b_s34b_b79k", "trained with GELU: use open_clip/ViT-B-32:laion2b_s34b_b79k"),
        ("ViT-B-32:nope", "has no weights named 'nope': it has openai, laion400m_e31"),
        ("NoClip", "has no model named 'NoClip'"),
    ],
)
def test_a_tag_that_does_not_fit_the_tower_is_one_line(name: str, message: str) -> None:
    for weights in (None, NO_WEIGHTS):
        with pytest.raises(ValueError, match=message) as refused:
            open_clip_model(name, weights)
        assert "\n" not in str(refused.value)


def test_a_tag_that_fits_is_fetched_and_a_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """roberta-ViT-B-32 has QuickGELU, its weights claim GELU, and there is no other tower for them."""
    asked = []

    def offline(model: str, source: str, **options: Any) -> None:
        asked.append(f"{model}:{source}")
        raise RuntimeError("Failed to download weights for tag\nand a long story")

    monkeypatch.setattr(open_clip, "create_model", offline)
    names = ["ViT-B-32:laion2b_s34b_b79k", "ViT-B-32-quickgelu:openai", "roberta-ViT-B-32:laion2b_s12b_b32k"]
    for name in names:
        with pytest.raises(ValueError, match=rf"trunk open_clip/{name} could not be loaded \(Failed to download"):
            open_clip_model(name, None)
    assert asked == names


def test_a_file_that_does_not_fit_is_one_line(weights: Callable[[str], tuple[Any, str]], tmp_path: Path) -> None:
    model, file = weights("tiny-vit")
    state = model.state_dict()
    marks = {name: torch.tensor(16) for name in ("input_resolution", "context_length", "vocab_size")}
    save_file(state | marks, tmp_path / "openai.safetensors")
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "half.safetensors").write_bytes(Path(file).read_bytes()[:1000])
    for name, message in [
        ("openai", "holds OpenAI's weights, trained with QuickGELU: use open_clip/tiny-vit-quickgelu"),
        ("nowhere", "does not exist"),
        ("half", "cannot be read"),
        ("other", r"could not be loaded \(Error.*Missing key"),
    ]:
        with pytest.raises(ValueError, match=message) as refused:
            OpenClipImageTrunk("tiny-vit", str(tmp_path / f"{name}.safetensors"))
        assert "\n" not in str(refused.value)


def test_pixels_are_normalised_as_the_weights_were_trained_also_when_they_come_from_elsewhere() -> None:
    half = ((0.5,) * 3, (0.5,) * 3)
    clip = (tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD))
    assert normalisation("ViT-B-16-SigLIP:webli") == normalisation("ViT-B-16-SigLIP") == half != clip
    assert normalisation("ViT-B-32:laion2b_s34b_b79k") == normalisation("ViT-B-32-quickgelu") == clip


def test_a_file_is_prepared_as_the_tags_of_its_model_are_and_not_as_clip(models: Path, tmp_path: Path) -> None:
    """open_clip gives a file CLIP's mean and a crop of the centre, whatever the model."""
    transform = image_transform(f"ViT-B-16-SigLIP:{tmp_path / 'file.safetensors'}", open_clip.create_model("tiny-vit"))
    pixels = transform(Image.new("RGB", (64, 32), (255, 255, 255)))
    torch.testing.assert_close(pixels, torch.ones(3, 32, 32))  # (1 - 0.5) / 0.5
    half = Image.new("RGB", (64, 32), (255, 255, 255))
    half.paste((0, 0, 0), (0, 0, 16, 32))
    assert transform(half)[0, 16, 0] == -1  # squashed: what a crop of the centre would cut off is there


def test_a_file_behind_the_name_is_read_as_its_weights(models: Path, tmp_path: Path) -> None:
    model = open_clip.create_model("tiny-vit")
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    loaded = open_clip_model(f"tiny-vit:{tmp_path / 'file.safetensors'}", None)
    torch.testing.assert_close(loaded.visual.proj, model.visual.proj)
