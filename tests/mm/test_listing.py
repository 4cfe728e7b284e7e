"""What there is to name, each in a line."""

import json
from pathlib import Path

import pytest

from mm.cli import presets
from mm.listing import config_rows, show_list

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is folded."""
    monkeypatch.setenv("COLUMNS", "300")


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_every_preset_is_listed_with_what_it_is() -> None:
    rows = dict(config_rows())
    assert list(rows) == [path.stem for path in presets()] and "flickr8k" in rows
    assert rows["flickr8k_scratch"] == "Flickr8k with nothing pretrained at all: image and text trunks from scratch"
    assert all(rows.values())


def test_names_are_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    show_list("configs", like="flickr8k_s*")
    printed = shown(capsys)
    assert "flickr8k_scratch" in printed and "flickr8k_speech" in printed and "coco" not in printed
    show_list("configs", like="nothing*")
    assert shown(capsys) == "no configs like 'nothing*'"


def test_trunks_are_kinds_and_by_pattern_models(capsys: pytest.CaptureFixture[str]) -> None:
    show_list("trunks")
    printed = shown(capsys)
    assert all(kind in printed for kind in ("scratch", "timm/<name>", "open_clip/<name>[:tag]", "hf/<hub name"))
    show_list("trunks", like="*")
    assert shown(capsys) == printed
    show_list("trunks", like="ViT-B-32:openai")
    assert shown(capsys) == "open_clip/ViT-B-32:openai image, text"
    show_list("trunks", like="vit_*")
    assert " more: a longer pattern has fewer" in shown(capsys)


def test_runs_are_finished_begun_or_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_list("runs", runs=tmp_path / "nowhere")
    assert shown(capsys) == "no runs here"
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    result = json.loads((ROOT / "eval/results/default-on-scenes-val.json").read_text())
    (tmp_path / "a" / "result.json").write_text(json.dumps(result))
    (tmp_path / "b" / "config.yaml").write_text("name: b")
    (tmp_path / "c" / "result.json").write_text("{")
    show_list("runs", runs=tmp_path)
    printed = shown(capsys)
    rsum = result["metrics"]["RSUM"]
    assert f"RSUM {rsum:.1f} on scenes/val, 1,000 images, trained on scenes/train" in printed
    assert "begun, not finished" in printed and "cannot be read" in printed
    assert str(tmp_path / "d") not in printed.replace(" ", "")


def test_datasets_are_told_by_what_lies_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "val-000000.tar").touch()
    (tmp_path / "shards" / "train-000000.tar").touch()
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "captions_val2017.json").touch()
    (tmp_path / "features").mkdir()
    show_list("datasets", data=tmp_path)
    printed = shown(capsys)
    assert "shards; splits train, val" in printed and "COCO captions; splits val2017" in printed
    assert "scenes" in printed and "features" not in printed
