"""What a report shows of a run comes from its embeddings and its data, or is absent for a stated reason."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from encoders.tokenizer import Tokenizer
from eval.report.exhibits import Material
from mm.artifacts.run import Run, build_run
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.evaluation.embed import embed_split
from mm.evaluation.exhibits import material_of, spread, words_of

Show = Callable[..., tuple[Run, AlignData, Material]]


@pytest.fixture
def show(on_scenes: Callable[..., AlignConfig], open_data: Callable[[AlignConfig], AlignData]) -> Show:
    """show(**changes of the config) -> an untrained run whose words attend, its data, the material of nine scenes."""

    def build(attends: bool = True, **changes: object) -> tuple[Run, AlignData, Material]:
        data = open_data(on_scenes(**changes))
        torch.manual_seed(0)
        run = build_run(on_scenes(**changes), data.vocabulary)
        if attends:
            nn.init.normal_(run.model.backbone.blocks[0].cross_attention.out_proj.weight)
        dataset = data.open("val")
        embeddings = embed_split(run, data, data.eval_view(dataset), "val")
        return run, data, material_of(run, data, dataset, embeddings)

    return build


def test_a_run_of_three_modalities_shows_everything(show: Show) -> None:
    _, data, material = show()
    exhibits, examples = material.exhibits, material.examples
    assert exhibits.absent == {} and set(exhibits.reconstructions) == {"image", "audio", "text"}
    dataset = data.open("val")
    for modality, pairs in exhibits.reconstructions.items():
        assert len(pairs) == 6, modality
        for pair in pairs:
            assert type(pair.given) is type(pair.decoded)
            if isinstance(pair.given, np.ndarray) and isinstance(pair.decoded, np.ndarray):
                assert pair.given.shape == pair.decoded.shape and np.isfinite(pair.given).all()
    caption = exhibits.reconstructions["text"][0].given
    first = dataset.captions[0][3]
    assert isinstance(caption, str) and first.lower().startswith(caption[:20]) and len(caption) > 20
    image = exhibits.reconstructions["image"][0].given
    assert isinstance(image, Image.Image) and np.array_equal(np.array(image).transpose(2, 0, 1), dataset[0].image)
    assert len(exhibits.code_maps) == 9 and all(each.codes.shape == (4, 4) for each in exhibits.code_maps)
    assert examples is not None and len(examples.captions) == len(material.embeddings["text"])  # type: ignore[arg-type]
    clip = examples.clip(dataset.image_ids[0])
    assert clip is not None and clip.content.startswith(b"fLaC") and clip.spectrogram.shape[0] == 64
    assert examples.clip(-1) is None


def test_codes_lie_where_their_patches_are(show: Show) -> None:
    run, _, material = show()
    image = torch.as_tensor(np.array(material.exhibits.code_maps[3].image)).permute(2, 0, 1)[None]
    again = run.model.encoders["image"](image).codes[0, :, 0].view(4, 4)
    assert np.array_equal(again.numpy(), material.exhibits.code_maps[3].codes)


def test_every_word_of_a_caption_has_its_share_of_attention(show: Show) -> None:
    _, data, material = show()
    captions = {caption for several in data.open("val").captions for caption in several}
    assert len(material.exhibits.attention) == 3
    for each in material.exhibits.attention:
        assert " ".join(each.words) in captions and each.weights.shape == (len(each.words), 4, 4)
        assert np.allclose(each.weights.sum((1, 2)), 1, atol=1e-3)


@pytest.mark.parametrize(
    "changes, absent",
    [
        ({"attends": False}, {"Where words look": "contrastive_only"}),
        (
            {"bottleneck": {"mode": "continuous"}},
            {"Which patches share a code": "continuous", "Reconstructions of text": "continuous"},
        ),
        ({"model": {"modalities": ("audio", "text")}}, {"Where words look": "images", "Which patches": "no images"}),
        ({"model": {"modalities": ("image", "audio")}}, {"Where words look": "captions"}),
    ],
)
def test_what_a_model_does_not_have_is_absent_for_a_reason(show: Show, changes: dict, absent: dict) -> None:
    kind = {"schedule": {"kind": "contrastive_only"}}
    _, _, material = show(**(kind | changes))
    said = material.exhibits.absent
    for name, reason in absent.items():
        (found,) = [why for title, why in said.items() if title.startswith(name)]
        assert reason in found
    if "Where words look" in absent:
        assert not material.exhibits.attention


def test_words_are_their_tokens() -> None:
    tokenizer = Tokenizer("scratch", 8)
    ids, _ = tokenizer(["a strawberry-red crescent"])
    words = words_of(tokenizer, "a strawberry-red crescent")
    assert [word for word, _ in words] == ["a", "strawberry-red", "crescent"]
    for word, tokens in words:
        assert ids[0][tokens].tolist() == tokenizer.word_ids(word)
    cut = words_of(tokenizer, "one two three four five six seven eight nine")
    assert [word for word, _ in cut] == ["one", "two", "three", "four", "five", "six"]
    assert words_of(tokenizer, "") == []


def test_samples_are_spread_over_all() -> None:
    assert spread(9, 3).tolist() == [1, 4, 7] and spread(2, 5).tolist() == [0, 1] and spread(0, 3).tolist() == []
