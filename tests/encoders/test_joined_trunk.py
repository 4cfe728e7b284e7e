"""Joined trunks: each part sees what it would see alone, and the parts meet place by place."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from encoders import BottleneckConfig, ImageConfig, ImageEncoder
from encoders.joined_trunk import JoinedTrunk, build_joined_trunk
from encoders.trunks import NO_WEIGHTS, TimmTrunk

PARTS = "timm/test_vit@64+timm/test_resnet"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> str:
    paths = []
    for name in ("test_vit", "test_resnet"):
        torch.manual_seed(len(name))
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file(timm.create_model(name, pretrained=False, num_classes=0).state_dict(), path)
        paths.append(str(path))
    return "+".join(paths)


@pytest.fixture(scope="module")
def joined(files: str) -> JoinedTrunk:
    return build_joined_trunk(PARTS, 96, files, 1).eval()


def pictures(rows: int = 2) -> torch.Tensor:
    return torch.rand(rows, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_tokens_are_a_summary_and_the_coarser_grid(joined: JoinedTrunk) -> None:
    tokens = joined(pictures()).tokens
    assert joined.grid == 3 and tokens.shape == (2, 1 + 9, joined.width)  # 4×4 patches, and 3×3 of the ResNet
    assert joined.width == sum(part.width for part in joined.parts)  # type: ignore[misc]


def test_a_part_at_the_joined_size_is_what_it_is_alone(joined: JoinedTrunk, files: str) -> None:
    alone = TimmTrunk("test_resnet", (96, 96), files.split("+")[1]).eval()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (alone.mean, alone.std))
    own = alone((pictures() - mean) / std).tokens
    both = joined(pictures()).tokens[:, :, -alone.width :]
    torch.testing.assert_close(both[:, 1:], torch.nn.functional.layer_norm(own, own.shape[-1:]))
    torch.testing.assert_close(both[:, 0], torch.nn.functional.layer_norm(own.mean(1), own.shape[-1:]))


def test_no_part_is_louder_than_another(joined: JoinedTrunk) -> None:
    sizes = [part.width for part in joined.parts]
    energies = [x.square().mean() for x in joined(pictures()).tokens.split(sizes, -1)]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.stack(energies), torch.ones(2), rtol=0.01, atol=0)


def test_an_encoder_reads_bytes_and_pools(files: str) -> None:
    encoder = ImageEncoder(
        ImageConfig(trunk=PARTS, weights=files, size=96, pool=3, frozen=True), BottleneckConfig(), 16
    )
    features = encoder.features(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    assert features.tokens.shape[1] == encoder.trunk.tokens == 2 and encoder(None, features=features).tokens.shape == (
        2,
        2,
        16,
    )


@pytest.mark.parametrize(
    "trunk, weights, message",
    [
        ("timm/test_vit+open_clip/ViT-B-32", NO_WEIGHTS, "each part must be timm/<name>"),
        ("timm/test_vit@big+timm/test_resnet", NO_WEIGHTS, "each part must be timm/<name>"),
        (PARTS, "one.safetensors", "2 parts: image.weights needs as many files"),
        (PARTS, "a+b+c", "2 parts: image.weights needs as many files"),
    ],
)
def test_what_does_not_join_is_one_line(trunk: str, weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        build_joined_trunk(trunk, 96, weights, 1)
    assert "\n" not in str(refused.value)
