"""metrics.csv and what is drawn of it."""

from eval.report.history import columns, multiples, read_history, stage_bands, validation_plots

ROWS = [
    {"step": 9.0, "train/total": 5.0, "train/a": 2.0, "val/RSUM": 10.0, "val/image_to_text/R@1": 1.0},
    {"step": 19.0, "train/total": 4.0, "val/RSUM": 20.0, "val/image_to_text/R@1": 2.0, "val/text_to_image/R@1": 3.0},
]


def test_history_is_read_with_its_holes_and_may_be_absent(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/a,val/R@1\n0,1.5,\n5,,30\n6,nan,\n")
    rows = read_history(tmp_path / "metrics.csv")
    assert rows == [{"step": 0, "train/a": 1.5}, {"step": 5, "val/R@1": 30}, {"step": 6}]
    assert read_history(tmp_path / "none.csv") == []


def test_a_schedule_has_the_bands_of_its_stages_or_none():
    config = {"train": {"steps": 200}, "schedule": {"kind": "progressive", "stage2": 0.25, "stage3": 0.5}}
    staged = [{"step": step, "stage": stage} for step, stage in ((10.0, 1.0), (60.0, 2.0))]
    assert [(band.begin, band.end) for band in stage_bands(config, staged)] == [(0, 50), (50, 100), (100, 200)]
    assert stage_bands(config, staged[1:]) == []
    config["schedule"]["kind"] = "contrastive_only"
    assert stage_bands(config, staged) == [] and stage_bands({}, staged) == []


def test_every_term_has_a_panel_of_its_own_the_total_first():
    terms = columns(ROWS, "train/")
    assert terms == ["train/total", "train/a"]
    shown = multiples(ROWS, terms, [])
    assert shown.count("<svg") == 2 and "total: 5 at step 9, 4 at step 19" in shown


def test_validation_is_drawn_by_pair_beside_chance():
    shown = validation_plots(ROWS, {"image_to_text": 0.1}, [])
    assert shown.count("<svg") == 2 and shown.count("dotted") == 1 and "image → text" in shown
