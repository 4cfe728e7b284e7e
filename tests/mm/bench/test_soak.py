"""The soak test itself, over a stand-in for training that counts: it must see a run that resumes wrongly."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mm.bench.soak import Plan, Starter, last_step, run_soak

COUNTING = """
import sys, time
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run, steps = Path(given["--runs"]) / given["--name"], int(given["--train.steps"])
saved = run / "checkpoints" / "last.ckpt"
saved.parent.mkdir(parents=True, exist_ok=True)
done, total = map(float, saved.read_text().split()) if "--resume" in given else (0, 0)
done = int(done)
with (run / "metrics.csv").open("w") as log:
    log.write("step\\n" + "".join(f"{s}\\n" for s in range(done)))
    for step in range(done, steps):
        total += step
        log.write(f"{step}\\n")
        log.flush()
        temporary = saved.with_suffix(".tmp")
        temporary.write_text(f"{step + 1} {total + FORGOTTEN}")
        temporary.replace(saved)
        time.sleep(0.01)
save_file({"total": np.array([total])}, run / "model.safetensors")
"""


@pytest.fixture
def soak(tmp_path: Path) -> Callable[..., dict]:
    """soak(forgotten=…, kills=…, memory_steps=…) -> what it found; a resumed run is wrong by `forgotten`."""

    def run(forgotten: int = 0, kills: int = 2, memory_steps: int = 0) -> dict:
        script = tmp_path / "train_align.py"
        script.write_text(COUNTING.replace("FORGOTTEN", str(forgotten)))
        start = Starter(script, tmp_path / "none.yaml", tmp_path / "runs")
        run_soak(start, Plan(kills, 60, memory_steps), tmp_path / "found.json")
        return json.loads((tmp_path / "found.json").read_text())

    return run


def test_a_run_that_resumes_as_it_was_is_found_equal(soak: Callable[..., dict]) -> None:
    found = soak()
    assert found["tensors_that_differ"] == [] and found["tensors"] == 1
    assert len(found["killed_after_logged_step"]) == 2


def test_a_run_that_forgets_is_found_out(soak: Callable[..., dict]) -> None:
    with pytest.raises(ValueError, match=r"resumed to other weights.*total"):
        soak(forgotten=1)


def test_memory_is_read_along_a_long_run(soak: Callable[..., dict]) -> None:
    found = soak(kills=0, memory_steps=100)
    assert found.keys() == {"commit", "hardware", "resident_mib_by_step"}
    assert found["resident_mib_by_step"] and all(value > 0 for value in found["resident_mib_by_step"].values())


def test_runs_that_are_there_are_not_overwritten(soak: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / "runs/whole").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"whole exists: give another --runs"):
        soak()


def test_a_damaged_file_that_nobody_speaks_of_ends_the_soak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mm.bench.soak.run_corruptions", lambda *_: {"faults": ["images, emptied: silent"]})
    with pytest.raises(ValueError, match="1 damaged files are neither refused nor counted, the first: images, emptied"):
        run_soak(Starter(tmp_path, tmp_path, tmp_path / "runs"), Plan(0, 1, 0, corrupt=1), tmp_path / "found.json")
    assert (tmp_path / "found.json").is_file()


def test_a_log_that_is_being_written_has_no_last_step_yet(tmp_path: Path) -> None:
    logs = {"": -1, "loss,st": -1, "loss,st\n0.1": -1, "loss,step\n0.1": -1, "loss,step\n0.1,9\n0.2,19\n": 19}
    for written, step in logs.items():
        (tmp_path / "metrics.csv").write_text(written)
        assert last_step(tmp_path) == step
