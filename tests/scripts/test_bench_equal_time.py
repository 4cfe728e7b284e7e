"""Steps of equal time: what is measured, and what follows from it, never how long anything took."""

import json
from collections.abc import Callable
from pathlib import Path

from alignment import ScheduleConfig
from mm.bench.config import StepConfig
from mm.bench.equal_time import found, parts, settings_of
from mm.config import TrainConfig
from mm.study import PlannedRun

STUDY = """
settings:
  data.root: {root}
  image: {{size: 32, width: 16}}
  text: {{width: 16, heads: 2}}
  bottleneck: {{quantizer: {{num_codes: 16, width: 8}}}}
  model:
    modalities: [image, text]
    embedding: 16
    token_embedding: 8
    backbone: {{width: 32, layers: 1, heads: 2, moe: {{num_experts: 8, top_k: 2, hidden: 8, shared: 16}}}}
  train: {{batch_size: 4, precision: fp32, accelerator: cpu}}
variants:
  plain: {{}}
  few: {{schedule.kind: few_tokens}}
"""


def test_a_run_has_the_parts_of_its_schedule() -> None:
    def edges(kind: str) -> list[tuple[float, float]]:
        schedule = ScheduleConfig(kind, stage2=0.2, stage3=0.8)  # type: ignore[arg-type]
        return [(part.start, part.stop) for part in parts(schedule)]

    assert edges("joint") == edges("hardening") == [(0, 1)]
    assert edges("few_tokens") == [(0, 0.8), (0.8, 1)]
    assert edges("progressive") == [(0, 0.2), (0.2, 0.8), (0.8, 1)]


def test_a_step_that_costs_half_is_taken_twice_as_often() -> None:
    train = TrainConfig(steps=100)
    few = StepConfig(schedule=ScheduleConfig("few_tokens", stage3=0.75), train=train)
    settings = {"plain": StepConfig(train=train), "few": few}
    timed = [
        {"implementation": "plain 0-1", "milliseconds": 13.0, "fastest_milliseconds": 10.0},
        {"implementation": "few 0-0.75", "milliseconds": 4.0, "fastest_milliseconds": 4.0},
        {"implementation": "few 0.75-1", "milliseconds": 8.0, "fastest_milliseconds": 8.0},
    ]
    assert found(settings, "plain", timed, 0.0) == [
        {"variant": "plain", "milliseconds": 10, "steps": 100},
        {"variant": "few", "milliseconds": 5, "steps": 200},
    ]
    assert [row["steps"] for row in found(settings, "plain", timed, 5.0)] == [100, 150]  # both are fed at one price


def test_every_part_of_a_study_is_timed_and_what_cannot_be_compared_is_refused(
    sets: tuple[Path, Path], tmp_path: Path, script: Callable[..., None], refused: Callable[..., str]
) -> None:
    study = tmp_path / "toy.yaml"
    study.write_text(STUDY.format(root=sets[0]))
    script("bench_equal_time.py", study, "plain", "--repeats", 1, "--json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["variant"] for row in rows["rows"]] == ["plain", "few"]
    assert [row["implementation"] for row in rows["parts"]] == ["plain 0-1", "few 0-0.85", "few 0.85-1"]
    assert rows["rows"][0]["steps"] == TrainConfig().steps
    assert "reference=none: " in refused("bench_equal_time.py", study, "none")
    study.write_text(study.read_text() + "  wide: {model.embedding: 8}\n")
    assert "wide reads other batches than plain" in refused("bench_equal_time.py", study, "plain")


def test_a_study_stands_on_its_file_of_settings() -> None:
    settings = {"data.views": 1, "model.backbone.moe.top_k": 4, "model.backbone.layers": 1}
    run = PlannedRun("plain", 0, settings, "configs/flickr8k.yaml")
    found = settings_of(run, Path("toy.yaml"))
    backbone = found.model.backbone
    assert (found.data.views, found.data.captions, found.image.pool) == (1, 2, 2)
    assert (backbone.layers, backbone.width, backbone.moe.top_k, backbone.moe.shared) == (1, 256, 4, 256)
