"""Images of which only codes are kept are found as before; product quantization is faiss's."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from eval.stored_codes import CODES, FLOAT, PRODUCT, stored_codes_plot, stored_codes_table
from mm.artifacts.run import build_run, save_run
from mm.artifacts.seen import save_seen
from mm.config import AlignConfig, encoders_of, plan_of
from mm.data.collection import Collection
from mm.data.module import AlignData
from mm.data.scenes import write_scenes
from mm.evaluation.stored_codes import EvalCodes, eval_codes, product_quantized


@pytest.fixture
def run(tiny: AlignConfig, tmp_path: Path) -> Callable[[Literal["vq", "both"]], Path]:
    """run(mode) -> the folder of an untrained run on a few scenes."""

    def build(mode: Literal["vq", "both"]) -> Path:
        root = write_scenes(tmp_path / f"scenes-{mode}", sizes={"train": 8, "val": 6}, image_size=32, layout="coco")
        read = replace(tiny.data, root=str(root), cache=str(tmp_path / "cache"))
        config = replace(tiny, data=read, bottleneck=replace(tiny.bottleneck, mode=mode))
        data = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
        data.setup()
        torch.manual_seed(0)
        save_run(build_run(config, data.vocabulary), tmp_path / mode)
        save_seen([Collection.of(config.data, [data.open("train"), data.open("val")])], tmp_path / mode)
        return tmp_path / mode

    return build


def test_codes_alone_find_what_the_model_finds(run: Callable[[str], Path], tmp_path: Path) -> None:
    folders = (str(run("vq")), str(run("both")))
    result = eval_codes(EvalCodes(folders, product=(), json=tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text()) == result
    whole, codes, other = result["rows"]
    assert [row["stored"] for row in result["rows"]] == [FLOAT, CODES, FLOAT]
    assert [row["model"] for row in result["rows"]] == ["vq", "vq", "both"]
    assert codes["largest_difference"] < 1e-2
    assert codes["image_to_text/R@1"] == whole["image_to_text/R@1"]
    assert codes["bytes"] < whole["bytes"] == other["bytes"]
    assert "| vq | codes |" in stored_codes_table([result])
    assert len(stored_codes_plot(result).axes[0].lines) == 2


def test_too_few_images_for_centroids_are_refused_in_one_line(run: Callable[[str], Path]) -> None:
    pytest.importorskip("faiss", reason="faiss is in the extra 'bench'")
    with pytest.raises(ValueError, match=r"--product '\[\]'"):
        eval_codes(EvalCodes((str(run("vq")),), product=(8,)))


def test_a_vector_becomes_the_nearest_centroid_of_each_part() -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is in the extra 'bench'")
    learned = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    # As many vectors as centroids: each is its own.
    np.testing.assert_allclose(product_quantized(faiss, learned, learned, 2), learned, atol=1e-5)
    with pytest.raises(ValueError, match="255 training images"):
        product_quantized(faiss, learned[1:], learned, 2)


def test_the_plot_has_codes_and_product_quantization_of_the_first_model() -> None:
    def row(model: str, stored: str, size: int, rsum: float) -> dict[str, object]:
        return {"model": model, "stored": stored, "bytes": size, "RSUM": rsum}

    rows = [row("a", FLOAT, 2048, 300), row("a", PRODUCT, 8, 200), row("a", PRODUCT, 16, 250)]
    rows += [row("b", FLOAT, 2048, 290), row("b", CODES, 57, 280), row("b", PRODUCT, 8, 190)]
    (axes,) = stored_codes_plot({"rows": rows}).axes
    drawn = {str(line.get_label()): line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"}
    assert list(drawn.values()) == [[[8, 200], [16, 250]], [[57, 280]]]
    assert "of a" in next(iter(drawn))
