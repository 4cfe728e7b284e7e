"""What is lost beside what is saved: paired by image, and the front of those that nothing beats in both."""

import numpy as np
import pytest

from eval.claims import Evidence, compiled, edge, quantisation
from eval.compare import ComparedRun, query_recalls
from eval.embeddings import Embeddings
from eval.light import LightRow, light_page, light_rows, light_table, pareto, pareto_plot, points_of, with_rsum
from eval.protocols import Protocol, Stated

STATED = Stated("toy", "val", "nothing")
SPEED = {
    "case": "encode_image of 1",
    "threads": 1,
    "implementation": "onnx 8",
    "milliseconds": 5.0,
    "per_second": 200.0,
    "device": "a processor",
}


def run_of(name: str, noise: float, captions: int = 2, images: int = 40) -> ComparedRun:
    """Captions near their images, the farther the more noise there is."""
    draw = np.random.default_rng(0)
    image = draw.standard_normal((images, 16))
    text = np.repeat(image, captions, 0) + noise * draw.standard_normal((images * captions, 16))
    ids = np.arange(images)
    arrays = {
        "image": (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32),
        "text": (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32),
        "image_ids": ids,
        "caption_image_ids": np.repeat(ids, captions),
    }
    embeddings = Embeddings.of(arrays)
    protocol = Protocol.of_ids(ids, np.repeat(ids, captions), STATED)
    return ComparedRun(name, protocol, embeddings, query_recalls(embeddings))


def test_the_mean_over_images_is_the_sum_of_the_recalls() -> None:
    run = run_of("a", 2.0)
    total = sum(recall.percent.mean() for recall in run.recalls.values())
    found = with_rsum(run)["RSUM"]
    assert found.percent.mean() == pytest.approx(total) and len(found.image) == 40 and 100 < total < 600


def test_a_run_beside_itself_loses_nothing_and_a_worse_one_does() -> None:
    runs = [run_of("a", 1.0), run_of("b", 1.0), run_of("c", 4.0)]
    rows = light_rows(runs, [1000, 500, 250], [{"image": 2.0}, {"image": 1.0}, {"image": 1.0}])
    same, worse = rows[1].differences["RSUM"], rows[2].differences["RSUM"]
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert worse.high < 0 and worse.difference == pytest.approx(rows[2].rsum - rows[0].rsum)
    assert rows[0].as_json()["bytes"] == 1000 and rows[2].as_json()["milliseconds"] == {"image": 1.0}
    assert len(light_table(rows).columns) == 8


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    rows = [LightRow("twin", 20, 75.0, {}), LightRow("large", 100, 90.0, {}), LightRow("small", 20, 80.0, {})]
    rows.append(LightRow("bad", 50, 70.0, {}))
    assert [row.name for row in pareto(rows)] == ["small", "large"]
    (axes,) = pareto_plot([(row.name, row.bytes / 1e6, row.rsum) for row in rows]).axes
    assert axes.get_xlabel() == "MB on disk" and len(axes.texts) == 4


def test_stored_prices_fill_the_page_and_the_claims() -> None:
    rows = light_rows([run_of("fp32", 1.0), run_of("int8", 1.2)], [1000, 266], [{}, {}])
    result = {"commit": "abc", "protocol": "toy/val", "price": [row.as_json() for row in rows], "speed": [SPEED]}
    result["resident"] = [{"implementation": "onnx 8", "bytes": 12_300_000}]
    other = {**result, "protocol": "other/val", "speed": [], "resident": []}
    page = light_page({"light": result, "light_other": other})
    assert page.count("| int8 |") == 2 and "**other/val**" in page and "img/light_other.svg" in page
    assert page.count("| onnx 8 | 12.3 |") == 1 and page.count("Measured on") == 1
    assert "| int8 | 0.00 | 0.266 |" in page and "| encode_image of 1 | 1 | onnx 8 | 5.00 | 200 |" in page
    assert points_of(result)[1][0] == "int8"
    evidence = Evidence([], benchmarks={"light": result})
    assert "int8: 0.266 of the bytes" in quantisation(evidence).measured
    assert "onnx 8 200" in edge(evidence).measured and "onnx 8 5.0 ms" in compiled(evidence).measured
    assert "not measured" in edge(Evidence([])).measured and "cannot be" in quantisation(Evidence([])).measured
