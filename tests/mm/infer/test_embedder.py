"""A finished run in five lines: unit vectors that do not depend on what else is asked for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import mm
from mm.artifacts.run import Run
from mm.config import AlignConfig
from mm.data.media import encode_audio
from mm.infer import base
from mm.infer.base import BaseEmbedder
from mm.infer.embedder import Embedder

WORDS = ("a red circle", "two blue squares left of a star", "stripes", "one small green heart", "a circle above a dot")
Pixels = Callable[[int], list[np.ndarray]]
close = torch.testing.assert_close


def clip(samples: int, period: int = 7) -> tuple[np.ndarray, int]:
    return np.sin(np.arange(samples) / period).astype(np.float32), 16000


CLIPS = [clip(samples, period) for samples, period in ((3000, 5), (5120, 9), (1200, 4), (4000, 6), (2500, 8))]


def inputs(pixels: Pixels) -> dict[str, list[Any]]:
    return {"image": pixels(5), "audio": CLIPS, "text": list(WORDS)}


def test_a_list_gives_a_unit_vector_for_each_input(model: BaseEmbedder, pixels: Pixels) -> None:
    for vectors, count in (
        (model.encode_image(pixels(3)), 3),
        (model.encode_text(["a red circle", "stripes"]), 2),
        (model.encode_audio(CLIPS[:1]), 1),
    ):
        assert vectors.shape == (count, 16) and vectors.dtype == torch.float32 and vectors.device.type == "cpu"
        close(vectors.norm(dim=1), torch.ones(count))


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_one_input_gives_one_vector(model: BaseEmbedder, pixels: Pixels, modality: str) -> None:
    items = inputs(pixels)[modality]
    one = model.encode(modality, items[1])
    assert one.shape == (16,)
    close(one, model.encode(modality, items[:2])[1], rtol=0, atol=1e-5)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(5)), kept=st.integers(1, 5), rows=st.integers(1, 6))
def test_a_vector_depends_on_its_input_alone(
    model: BaseEmbedder, pixels: Pixels, order: list[int], kept: int, rows: int
) -> None:
    """Neither on its neighbours, nor on their padding, order and number, nor on where a batch ends."""
    for modality, items in inputs(pixels).items():
        whole = model.encode(modality, items)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "ROWS", rows)
            some = model.encode(modality, [items[place] for place in order[:kept]])
        close(some, whole[order[:kept]], rtol=0, atol=1e-5)


def test_an_image_is_the_same_by_path_array_tensor_and_pil(model: BaseEmbedder, pixels: Pixels, tmp_path: Path) -> None:
    (array,) = pixels(1)
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = [array, tensor, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")]
    vectors = model.encode_image(forms)
    close(vectors, vectors[:1].expand(5, -1), rtol=0, atol=1e-5)
    for stacked in (np.stack([array, array]), torch.stack([tensor, tensor])):
        assert model.encode_image(stacked).shape == (2, 16)
    for form in forms:
        close(model.encode_image(form), vectors[0], rtol=0, atol=1e-5)


def test_audio_is_the_same_by_path_array_and_tensor(model: BaseEmbedder, tmp_path: Path) -> None:
    waveform, rate = clip(4000)
    (tmp_path / "a.wav").write_bytes(encode_audio(waveform, rate, "wav"))
    vectors = model.encode_audio([(waveform, rate), (torch.from_numpy(waveform), rate), tmp_path / "a.wav"])
    close(vectors[1], vectors[0], rtol=0, atol=1e-5)
    close(vectors[2], vectors[0], rtol=0, atol=1e-2)  # 16 bits on disk
    close(model.encode_audio(str(tmp_path / "a.wav")), vectors[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_inputs_read_one_by_one_are_the_processor_s_batch(model: BaseEmbedder, pixels: Pixels, modality: str) -> None:
    assert isinstance(model, Embedder)
    items = inputs(pixels)[modality]
    read = model.processor.images if modality == "image" else model.processor.audio
    expected = read(items)
    (batch,) = model.batches(modality, model.inputs(modality, items))
    assert torch.equal(batch.inputs[modality], expected.inputs[modality])
    assert batch.masks.keys() == expected.masks.keys()
    for name, mask in expected.masks.items():
        assert torch.equal(batch.masks[name], mask)


def test_vectors_may_enter_a_training_step(model: BaseEmbedder) -> None:
    layer = torch.nn.Linear(16, 1)
    layer(model.encode_text(list(WORDS))).sum().backward()
    assert layer.weight.grad is not None


def test_similarity_is_the_cosine(model: BaseEmbedder, pixels: Pixels) -> None:
    a, b = model.encode_image(pixels(2)), model.encode_text(list(WORDS))
    cosines = model.similarity(a, b)
    assert cosines.shape == (2, 5)
    close(cosines[1, 3], torch.nn.functional.cosine_similarity(a[1], b[3], dim=0))
    close(model.similarity(a[1], b[3]), cosines[1, 3])
    close(model.similarity(a[1], b), cosines[1])
    close(model.similarity(a, b[3]), cosines[:, 3])
    with pytest.raises(ValueError, match="width 16 and 8"):
        model.similarity(a, b[:, :8])


def test_matching_is_pair_by_pair(model: BaseEmbedder, pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["red", "two blue squares left of a star", "stripes"]
    logits = model.match(pixels(3), texts)
    assert logits.shape == (3,) and logits.unique().numel() == 3
    monkeypatch.setattr(base, "ROWS", 2)
    close(model.match(pixels(3), texts), logits, rtol=1e-4, atol=1e-5)
    one = model.match(pixels(3)[2], "stripes")
    assert one.shape == ()
    close(one, logits[2], rtol=1e-4, atol=1e-5)
    close(model.match(pixels(3), "stripes")[2], logits[2], rtol=1e-4, atol=1e-5)
    close(model.match(pixels(3)[1], texts)[1], logits[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="3 images and 1 texts"):
        model.match(pixels(3), ["red"])


def test_codes_are_the_quantizer_s_and_padding_has_none(model: BaseEmbedder, pixels: Pixels) -> None:
    codes = model.codes(text=["stripes", "two blue squares left of a star"])
    assert codes.dtype == torch.int64 and codes.shape[0] == 2 and codes.ndim == 3
    lengths = (codes[..., 0] >= 0).sum(1)
    assert lengths[0] < lengths[1] == codes.shape[1] and codes.max() < 16
    assert (codes[0, lengths[0] :] == -1).all()
    one = model.codes(text="stripes")
    assert torch.equal(one, codes[0, : lengths[0]])
    assert model.codes(image=pixels(2)).shape[0] == 2
    with pytest.raises(ValueError, match="one of image, audio, text, got 2"):
        model.codes(image=pixels(2), text="stripes")


def test_codes_of_batches_of_different_length_are_padded(model: BaseEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.codes(text=list(WORDS))
    monkeypatch.setattr(base, "ROWS", 2)
    assert torch.equal(model.codes(text=list(WORDS)), whole)


def test_a_continuous_bottleneck_has_no_codes(save_tiny: Callable[..., Path], tiny: AlignConfig) -> None:
    continuous = mm.load(save_tiny("other", bottleneck=replace(tiny.bottleneck, mode="continuous")), device="cpu")
    with pytest.raises(ValueError, match="no codes of text"):
        continuous.codes(text="stripes")


@pytest.mark.parametrize(
    "modality, wrong, said",
    [
        ("image", [], "an empty list, there is nothing to encode"),
        ("text", [], "an empty list, there is nothing to encode"),
        ("audio", [], "an empty list, there is nothing to encode"),
        ("image", 3, "not int"),
        ("image", np.zeros((3, 8, 8), np.uint8), r"array \(H, W, 3\) of uint8, got \(3, 8, 8\) of uint8"),
        ("image", np.zeros((8, 8), np.uint8), r"got \(8, 8\) of uint8"),
        ("image", np.zeros((8, 8, 3), np.float32), "of float32"),
        ("image", torch.zeros(8, 8, 3, dtype=torch.uint8), r"tensor \(3, H, W\) of uint8, got \(8, 8, 3\)"),
        ("image", torch.zeros(3, 8, 8), "of torch.float32"),
        ("image", np.zeros((0, 8, 3), np.uint8), r"got \(0, 8, 3\)"),
        ("image", [np.zeros((8, 8, 3), np.uint8), 3], "image 1 is of type int"),
        ("text", ["a", " "], "text 1 is blank"),
        ("text", ["a", 1.5], "text 1 is of type float, not a string"),
        ("text", {"a": 1}, "not dict"),
        ("audio", np.zeros(8, np.float32), "needs its rate"),
        ("audio", (np.zeros((2, 8), np.float32), 16000), r"one row \(S,\) of float, got \(2, 8\)"),
        ("audio", (np.zeros(8, np.int16), 16000), "of int16"),
        ("audio", (np.zeros(0, np.float32), 16000), r"got \(0,\)"),
        ("audio", (np.array([0.1, np.nan]), 16000), "not finite"),
        ("audio", (np.array([0.1, 900.0]), 16000), r"leaves \[-1, 1\]"),
        ("audio", [clip(99), (np.zeros(8, np.float32), 0)], "audio clip 1 has a rate of 0 hertz"),
        ("audio", [np.zeros(8, np.float32), 16000], "audio clip 0 is of type ndarray"),
        ("audio", [clip(99), 3], "audio clip 1 is of type int"),
    ],
)
def test_what_is_no_input_is_refused_in_one_line(model: BaseEmbedder, modality: str, wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        getattr(model, f"encode_{modality}")(wrong)
    assert "\n" not in str(refused.value)


def test_a_path_that_cannot_be_read_is_named(model: BaseEmbedder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        model.encode_image([tmp_path / "nowhere.jpg"])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png does not decode"):
        model.encode_image(tmp_path / "broken.png")
    (tmp_path / "empty.wav").write_bytes(encode_audio(np.zeros(0, np.float32), 16000, "wav"))
    with pytest.raises(ValueError, match=r"empty\.wav holds no audio"):
        model.encode_audio(tmp_path / "empty.wav")


def test_a_modality_that_the_run_lacks_is_named(save_tiny: Callable[..., Path], tiny: AlignConfig) -> None:
    folder = save_tiny("pair", model=replace(tiny.model, modalities=("image", "text")))
    pair = mm.load(folder, device="cpu")
    with pytest.raises(ValueError, match=r"pair has no encoder of audio, only of image, text"):
        pair.encode_audio(clip(4000))


def test_the_digest_names_weights_and_reading(
    model: BaseEmbedder, tiny_run: Callable[..., Run], tiny: AlignConfig
) -> None:
    run = tiny_run()
    digest = Embedder(run).digest
    assert digest == Embedder(tiny_run(), "another name").digest
    assert digest != model.digest  # whose codebooks have seen data
    assert digest != Embedder(tiny_run(image=replace(tiny.image, fit="crop"))).digest
    with torch.no_grad():
        next(run.model.parameters()).add_(1)
    assert digest != Embedder(run).digest


def test_tokens_of_strings_are_not_kept(model: BaseEmbedder) -> None:
    assert isinstance(model, Embedder)
    model.encode_text(list(WORDS))
    assert not model.processor.collate._rows
