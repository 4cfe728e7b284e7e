"""A name is a folder of a run, a model of a library, or one line that says what it could have been."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import mm
from mm.infer.embedder import Embedder
from mm.infer.loading import device_of
from mm.infer.towers import Tower


def test_a_folder_is_a_run(save_tiny: Callable[..., Path]) -> None:
    model = mm.load(save_tiny("open_clip"), device="cpu")  # whatever it is called
    assert (
        isinstance(model, Embedder)
        and model.run.device.type == "cpu"
        and model.modalities == model.run.model.modalities
    )


@pytest.mark.parametrize("name", ["runs/nowhere", ""])
def test_what_is_neither_folder_nor_model_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"no such folder|holds no finished run") as refused:
        mm.load(name)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        mm.load(tmp_path)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
        device_of(device)
    assert device_of("cpu") == torch.device("cpu")


@pytest.fixture
def vit_file(tmp_path: Path) -> Path:
    """Weights of a small model of timm."""
    torch.manual_seed(0)
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


def test_a_model_goes_to_the_device_that_is_asked_for(
    save_tiny: Callable[..., Path], vit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm.infer.loading.choose_device", lambda: torch.device("cuda", 0))
    assert device_of("auto") == torch.device("cuda", 0)
    run = mm.load(save_tiny("run"), device="meta")
    assert isinstance(run, Embedder) and run.run.device.type == "meta"
    tower = mm.load(f"timm/test_vit:{vit_file}", device="meta")
    assert isinstance(tower, Tower) and tower.device.type == "meta"


@pytest.mark.parametrize(
    "name, said",
    [
        ("open_clip/ViT-B-32", "names no weights"),
        ("open_clip/nothing:tag", "no model named 'nothing'"),
        ("timm/nothing_at_all", "no model named 'nothing_at_all'"),
    ],
)
def test_a_tower_that_a_library_lacks_is_one_line(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        mm.load(name, device="cpu")


def test_a_timm_tower_embeds_images_and_nothing_else(
    pixels: Callable[[int], list[np.ndarray]], vit_file: Path, tmp_path: Path
) -> None:
    tower = mm.load(f"timm/test_vit:{vit_file}", device="cpu")
    vectors = tower.encode_image(pixels(2))
    assert vectors.shape == (2, tower.width)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert tower.encode_image(pixels(1)[0]).shape == (tower.width,)
    for call in (lambda: tower.encode_text("a"), lambda: tower.encode_audio("a.wav")):
        with pytest.raises(ValueError, match=r"timm/test_vit:.* has no encoder of (text|audio), only of image"):
            call()
    with pytest.raises(ValueError, match="no joint reading"):
        tower.match(pixels(1), ["a"])
    with pytest.raises(ValueError, match="no codes"):
        tower.codes(image=pixels(1))
    save_file(tower.model.state_dict(), tmp_path / "w.safetensors")  # type: ignore[attr-defined]
    again = mm.load(f"timm/test_vit:{tmp_path / 'w.safetensors'}", device="cpu")
    torch.testing.assert_close(again.encode_image(pixels(2)), vectors)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "other.safetensors")
    other = mm.load(f"timm/test_vit:{tmp_path / 'other.safetensors'}", device="cpu")
    assert again.digest == tower.digest != other.digest


def test_an_open_clip_model_embeds_images_and_text(pixels: Callable[[int], list[np.ndarray]], tmp_path: Path) -> None:
    import open_clip

    tiny = '{"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},'
    tiny += ' "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}'
    (tmp_path / "tiny-clip.json").write_text(tiny)
    open_clip.add_model_config(tmp_path)
    save_file(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "clip.safetensors")
    model = mm.load(f"open_clip/tiny-clip:{tmp_path / 'clip.safetensors'}", device="cpu")
    images, texts = model.encode_image(pixels(2)), model.encode_text(["a red circle", "stripes", "dots"])
    assert images.shape == (2, 8) and texts.shape == (3, 8)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(model.encode_text("stripes"), texts[1])
    assert model.similarity(images, texts).shape == (2, 3)
    with pytest.raises(ValueError, match="no joint reading"):
        model.match(pixels(1), ["a"])


def test_the_public_names_are_there_and_no_others() -> None:
    for name in mm.__all__:
        assert getattr(mm, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = mm.nothing  # type: ignore[attr-defined]
