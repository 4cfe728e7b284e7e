"""What a report shows of a run comes from its embeddings and its data, or is absent for a stated reason."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from eval.report.exhibits import Material
from mm.artifacts.run import Run, build_run
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.evaluation.embed import Embedded, embed_split
from mm.evaluation.exhibits import margins_of, material_of, spread

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
    assert exhibits.absent == {"What it writes": "the model does not write text: model.generate=true trains it to"}
    assert set(exhibits.reconstructions) == {"image", "audio", "text"}
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


def test_a_model_that_writes_describes_the_best_and_the_worst_images(show: Show) -> None:
    _, _, material = show(model={"generate": True})
    written = material.exhibits.written
    assert [each.kind for each in written] == ["Best", "Best", "Worst", "Worst"]
    for each in written:
        assert each.weights.shape == (len(each.words), 4, 4)
        assert np.allclose(each.weights.sum((1, 2)), 1, atol=1e-3)


def test_an_image_is_as_good_as_its_nearest_caption_is_ahead_of_others() -> None:
    images = embedded(torch.eye(3), [4, 5, 6])
    captions = embedded(torch.tensor([[0.8, 0.6, 0.0], [0.6, 0.0, 0.8], [0.0, 1.0, 0.0]]), [4, 4, 5])
    assert torch.allclose(margins_of(images, captions), torch.tensor([0.8, 0.4, -torch.inf]))


def embedded(vectors: torch.Tensor, ids: list[int]) -> Embedded:
    """Of vectors (N, E) alone."""
    return Embedded(vectors, vectors, torch.tensor(ids), None)  # type: ignore[arg-type]  # not asked for


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


def test_samples_are_spread_over_all() -> None:
    assert spread(9, 3).tolist() == [1, 4, 7] and spread(2, 5).tolist() == [0, 1] and spread(0, 3).tolist() == []
