"""What is timed of a run is what the run does; memory is counted from before anything is open."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.errors import UserError
from mm.artifacts.run import build_run, save_run
from mm.bench import light_speed
from mm.bench.generated import written_pool
from mm.bench.light import LightConfig, bench_light, priced
from mm.bench.light_speed import TIMED, Subject, Timing, flat, resident_rows, rows_of, speed_rows
from mm.config import AlignConfig


@pytest.fixture
def writing(tiny: AlignConfig, vocabulary: torch.Tensor, tmp_path: Path) -> Path:
    """The folder of a run of images and text that writes, one layer deep."""
    backbone = replace(tiny.model.backbone, layers=1)
    model = replace(tiny.model, modalities=("image", "text"), generate=True, backbone=backbone)
    torch.manual_seed(0)
    run = build_run(replace(tiny, model=model), vocabulary).eval()
    torch.nn.init.normal_(run.model.backbone.blocks[0].cross_attention.out_proj.weight, std=0.2)
    save_run(run, tmp_path / "writing")
    return tmp_path / "writing"


def test_both_ways_that_are_timed_compute_the_same(writing: Path, tmp_path: Path) -> None:
    """The run's own code, and the graph that engines have of it, fed as each is in the bench."""
    subject = Subject(writing)
    files = written_pool(tmp_path / "pool", 2)
    for graph in ("encode_image", "encode_text", "match"):
        expected = subject.eager(graph, files, "fp32")()
        module = subject.graphs[graph].module
        with torch.no_grad():
            found = subject.exported(graph, files, module)()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_one_token_is_read_behind_half_a_cache_beside_an_image(writing: Path, tmp_path: Path) -> None:
    subject = Subject(writing)
    seen = {}

    def call(*inputs: torch.Tensor) -> None:
        seen["shapes"] = [tuple(part.shape) for part in inputs]
        seen["at"] = inputs[1].tolist()

    files = written_pool(tmp_path / "pool", 5)
    subject.exported("decode_step", files, call)()
    graph = subject.graphs["decode_step"]
    context = graph.inputs["keys"].shape[3]
    assert seen["at"] == [context // 2] * 5
    assert seen["shapes"] == [tuple(part.shape) for part in flat(rows_of(graph, 5))]
    assert seen["shapes"][2][1] == 5 and seen["shapes"][0] == (5, 1)
    logits = subject.eager("decode_step", files, "fp32")()
    assert logits.shape[0] == 5 and logits.isfinite().all()


def test_a_run_is_timed_by_graph_and_batch_and_its_memory_grows(writing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light_speed, "in_a_process", lambda measure, *given: measure(*given))
    timing = Timing(writing, (), TIMED, (1, 2), 1)
    rows = speed_rows(timing, 1)
    cases = [f"{graph} of {batch}" for graph in TIMED for batch in (1, 2)]
    assert [row["case"] for row in rows] == [case for case in cases for _ in range(2)]
    assert rows[1]["implementation"] == "eager bf16" and rows[0]["per_second"] > 0
    in_use = iter([100, 140, 200, 260])
    monkeypatch.setattr(light_speed, "memory_in_use", lambda _: next(in_use))
    assert [row["bytes"] for row in resident_rows(timing)] == [40, 60]


def evaluated(folder: Path, name: str, dataset: str = "toy", precision: str = "auto") -> str:
    """A run's folder with weights, and a result of eval_coco.py in it."""
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(bytes(100))
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((4, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(4)
    np.savez(folder / f"{name}.npz", image=vectors, text=vectors, image_ids=ids, caption_image_ids=ids)
    protocol = {"dataset": dataset, "split": "val", "images": 4, "captions": 4, "captions_per_image": 1.0}
    protocol |= {"recall": "any-hit", "rerank_depth": 0, "trained_on": "x", "skipped": {}}
    content = {"protocol": {"all": protocol}, "metrics": {}, "config": {"train": {"precision": precision}}}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder / f"{name}.json")


def test_results_of_another_set_and_arithmetic_are_priced_by_the_file_of_weights(tmp_path: Path) -> None:
    base = evaluated(tmp_path / "a", "eval-toy-val-fp32", precision="fp32")
    other = evaluated(tmp_path / "b", "eval-toy-val")
    rows, protocol = priced([base, other])
    assert [row.name for row in rows] == [f"{tmp_path / 'a'} in fp32", str(tmp_path / "b")]
    assert rows[0].bytes == 100 and rows[1].differences["RSUM"].difference == 0 and protocol == "toy/val"
    with pytest.raises(UserError, match="one table is of one set"):
        priced([base, evaluated(tmp_path / "c", "eval-z-val", "z")])


def test_what_is_not_timed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="decode is not timed here: choose from encode_image"):
        LightConfig(("a",), graphs=("decode",))
    with pytest.raises(UserError, match="speed=false times nothing"):
        LightConfig(("a",), speed=False, exports=("b",))
    path = tmp_path / "light.json"
    bench_light(LightConfig((evaluated(tmp_path / "a", "eval-toy-val"),), speed=False, json=path))
    assert json.loads(path.read_text())["speed"] == []


def test_an_export_lacks_what_it_was_not_asked_for(writing: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no export"):
        light_speed.description(tmp_path)
    with pytest.raises(UserError, match="holds no match: export it without --graphs"):
        light_speed.opened(tmp_path, {"files": {}, "engine": "onnx"}, "match", 1)
