"""A step taken apart: what is measured and that the parts add up, never how long anything took."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mm.data.scenes import write_scenes

SMALL = """
image: {size: 32, width: 16}
text: {width: 16, heads: 2}
bottleneck: {quantizer: {num_codes: 16, width: 8}}
model:
  modalities: [image, text]
  embedding: 16
  token_embedding: 8
  backbone: {width: 32, layers: 1, heads: 2, moe: {num_experts: 8, top_k: 2, hidden: 8, shared: 16}}
loss: {filip_rows: 4, itm_rows: 4}
schedule: {kind: progressive}
train: {batch_size: 8, precision: fp32}
"""


def test_a_step_is_measured_beside_the_peer_and_taken_apart(
    script: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_scenes(tmp_path / "scenes", sizes={"train": 20, "val": 8}, image_size=32)
    settings, out = tmp_path / "small.yaml", tmp_path / "found.json"
    settings.write_text(SMALL)
    script("bench_step.py", "--config", settings, "--data.root", root, "--repeats", 1, "--json", out)
    found, shown = json.loads(out.read_text()), capsys.readouterr().out
    assert [row["implementation"] for row in found["rows"]] == ["ours", "open_clip"]
    for row in found["rows"]:
        assert row["images_per_second"] == pytest.approx(8000 / row["milliseconds"], rel=0.01)
    listed = found["largest_outside"]
    assert 0 < sum(listed.values()) <= found["outside_arithmetic"] + 0.01 < 1
    assert not any(part in name for name in listed for part in ("addmm", "bmm", "conv", "scaled_dot_product"))
    assert "outside arithmetic" in shown and "transformers of width 32" in shown
