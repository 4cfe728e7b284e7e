"""Inputs of no dataset are read as the evaluation reads those of one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mm.config import AlignConfig, encoders_of
from mm.data.media import encode_audio
from mm.data.module import AlignData
from mm.infer.processor import Processor


@pytest.fixture
def processor(tiny: AlignConfig) -> Processor:
    return Processor(encoders_of(tiny))


def test_a_sample_is_read_as_its_split_s_evaluation_reads_it(
    on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData]
) -> None:
    config = on_scenes()
    data = open_data(config)
    dataset = data.open("val")
    processor = Processor(encoders_of(config))
    (expected,) = data.sample_batches(data.eval_view(dataset), "val", 9)
    samples = [dataset[position] for position in range(9)]
    images = processor.images([sample.image for sample in samples if sample.image is not None])
    assert torch.equal(images.inputs["image"], expected.inputs["image"])
    clips = processor.audio([(sample.audio, sample.sample_rate) for sample in samples if sample.audio is not None])
    assert torch.equal(clips.inputs["audio"], expected.inputs["audio"])
    assert torch.equal(clips.masks["audio"], expected.masks["audio"])
    text = processor.text(dataset.captions[0])
    captions = next(data.caption_batches(data.eval_view(dataset), "val", 5))
    assert torch.equal(text.inputs["text"], captions.inputs["text"])


def test_an_image_may_be_a_path_or_an_array(processor: Processor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    batch = processor.images([image, tmp_path / "a.png", str(tmp_path / "a.png"), pixels])
    assert batch.modalities == ("image",) and batch.present["image"].all()
    assert all(torch.equal(row, batch.inputs["image"][0]) for row in batch.inputs["image"])


def test_audio_may_be_a_path_and_have_any_rate(processor: Processor, tmp_path: Path) -> None:
    waveform = np.sin(np.arange(4000) / 10).astype(np.float32) / 2
    (tmp_path / "a.flac").write_bytes(encode_audio(waveform, 16000))
    batch = processor.audio([(waveform, 16000), tmp_path / "a.flac", (waveform[::2].copy(), 8000)])
    assert batch.masks["audio"].sum(1).tolist() == [4000, 4000, 4000]
    torch.testing.assert_close(batch.inputs["audio"][0], batch.inputs["audio"][1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "image, said",
    [
        (np.zeros((3, 8, 8), np.uint8), r"\(H, W, 3\) uint8, not \(3, 8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
    ],
)
def test_an_array_that_is_no_image_is_refused(processor: Processor, image: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        processor.images([image])


def test_what_cannot_be_read_is_named(processor: Processor, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png does not decode"):
        processor.images([tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="one row"):
        processor.audio([(np.zeros((2, 100), np.float32), 16000)])


def test_a_modality_that_the_run_lacks_is_named(tiny: AlignConfig) -> None:
    processor = Processor({"image": tiny.image})
    with pytest.raises(ValueError, match="no encoder of text, only of image"):
        processor.text(["a"])
