"""Behaviour: every image gets the speech of one caption, by a voice of its own, once."""

import numpy as np
import pytest

from kernels.errors import UserError
from mm.data import open_split
from mm.data.coco import CocoFolder, write_coco
from mm.data.prepare.speech import link_images, speak_split, voice_of


class Humming:
    """A synthesizer that hums a letter's worth of samples per letter, and cannot say "unspeakable"."""

    name, voices = "humming", ("low", "high")

    def __init__(self):
        self.said = []

    def __call__(self, text, voice):
        self.said.append((text, voice))
        if "caption 9" in text:
            raise UserError(f"cannot say {text!r}")
        return np.sin(np.arange(100 * len(text)) * (0.05 if voice == "low" else 0.1)).astype(np.float32), 8000


@pytest.fixture
def source(tmp_path, photographs):
    write_coco(photographs(5), tmp_path / "coco", "train")
    return CocoFolder(tmp_path / "coco", "train")


def test_every_image_is_spoken_once(source, tmp_path):
    humming = Humming()
    done = speak_split(source, tmp_path / "out", humming, caption=1, workers=2)
    assert (done.rendered, done.kept, done.failed) == (5, 0, [])
    images = zip(source.image_ids, source.captions, strict=True)
    assert sorted(humming.said) == sorted((captions[1], voice_of(i, humming.voices)) for i, captions in images)
    spoken = open_split(tmp_path / "coco", "train", audio_root=tmp_path / "out")
    assert all(spoken.has_audio)
    sample = spoken[0]
    assert sample.sample_rate == 16000 and len(sample.audio) == 2 * 100 * len(sample.captions[1])


def test_going_on_speaks_only_what_is_missing(source, tmp_path):
    speak_split(source, tmp_path, Humming())
    (tmp_path / "audio" / "photo_003.flac").unlink()
    (tmp_path / "audio" / "photo_004.flac").rename(tmp_path / "audio" / "photo_004.flac.part")
    humming = Humming()
    done = speak_split(source, tmp_path, humming)
    assert (done.rendered, done.kept) == (2, 3) and len(humming.said) == 2
    with pytest.raises(ValueError, match="speech of another caption, sample_rate"):
        speak_split(source, tmp_path, Humming(), caption=1, sample_rate=8000)


def test_a_caption_that_cannot_be_spoken_is_listed(source, tmp_path):
    source.captions[2] = ("caption 9",)
    done = speak_split(source, tmp_path, Humming())
    assert done.rendered == 4 and done.failed == ["image 102: cannot say 'caption 9'"]
    source.captions[:] = [("caption 9",)] * 5
    with pytest.raises(ValueError, match="none of 5 captions could be spoken"):
        speak_split(source, tmp_path / "other", Humming())


def test_voices_are_fixed_by_the_image_and_all_of_them_speak():
    voices = ("a", "b", "c")
    chosen = [voice_of(image_id, voices) for image_id in range(300)]
    assert chosen == [voice_of(image_id, voices) for image_id in range(300)]
    assert all(60 < chosen.count(voice) < 140 for voice in voices)


def test_the_folder_of_clips_becomes_a_set_of_its_own(source, tmp_path):
    root = tmp_path / "coco"
    speak_split(source, tmp_path / "out", Humming())
    (root / "inside").mkdir()
    link_images(root, tmp_path / "out")
    link_images(root, tmp_path / "out")  # a second time changes nothing
    assert open_split(tmp_path / "out", "train").modalities == {"image", "audio", "text"}
    assert not (root / "audio").exists()
    link_images(root, root / "inside")  # a folder inside the set is not linked into itself
    assert not (root / "inside" / "inside").exists()
    before = sorted(root.rglob("*"))
    link_images(root, root)
    assert sorted(root.rglob("*")) == before
