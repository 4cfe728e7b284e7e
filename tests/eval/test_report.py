"""The report: complete, self-contained, and seen by a real browser."""

import re
import shutil
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from eval.diagnostics import Diagnostics
from eval.protocols import Protocol
from eval.report import numeric_rows, read_history, write_report
from eval.report_cards import Examples

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


def thumbnail(image_id):
    return Image.fromarray(np.full((32, 48, 3), (image_id, 120, 255 - image_id), np.uint8))


def made_report(folder, **changes):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((30, 16))
    text = np.repeat(image, 5, 0) + 1.2 * rng.standard_normal((150, 16))
    image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text))
    ids = np.arange(30) * 7
    steps = range(0, 300, 10)
    parts = {
        "result": {
            "metrics": {"image_to_text/R@1": 61.2, "text_to_image/R@1": 48.0, "RSUM": 400.0},
            "intervals": {"image_to_text/R@1": [55.0, 67.0]},
            "seconds": 12.5,
            "parameters_total": 1234567,
            "protocol": {
                "val": asdict(Protocol("scenes", "val", 30, 150, "5", rerank_depth=2, pretraining="image: pairs"))
            },
        },
        "history": numeric_rows(
            {"step": s, "stage": 1 + s // 100, "train/contrastive": 5 * np.exp(-s / 90), "train/vq": 1.0, "val": ""}
            for s in steps
        ),
        "embeddings": {
            "image": image,
            "text": text,
            "image_ids": ids,
            "caption_image_ids": np.repeat(ids, 5),
            "audio": image[:20] + 0.1,
            "audio_image_ids": ids[:20],
        },
        "diagnostics": Diagnostics(
            {"image": rng.integers(0, 9, (2, 64)), "text": rng.integers(0, 99, (1, 64))},
            {"image": rng.integers(0, 50, (3, 16)), "text": rng.integers(0, 50, (3, 16))},
        ),
        "examples": Examples([f"caption {i} <script>alert(1)</script>" for i in range(150)], thumbnail),
    }
    return write_report(folder / "report.html", **parts | changes)


def test_report_holds_every_part_and_nothing_from_outside(tmp_path):
    page = made_report(tmp_path).read_text()
    for name in ("recall", "similarity", "codes", "experts", "losses"):
        assert f'<figure id="{name}"><img class="plot"' in page
    assert "55.0–67.0" in page and "Image to text: best and worst" in page
    assert "The trunks have seen: image: pairs" in page
    assert "scenes val 30 images x 150 captions" in page and "parameters 1,234,567 · seconds 12.5" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_part_without_numbers_is_skipped_and_said(tmp_path, caplog):
    caplog.set_level("INFO")
    load = Diagnostics(expert_load={"image": np.ones((3, 16))})
    page = made_report(tmp_path, diagnostics=load, history=[]).read_text()
    assert 'id="codes"' not in page and 'id="losses"' not in page and 'id="experts"' in page
    assert "Code utilization per modality" in caplog.text and "Training terms by stage" in caplog.text


def test_captions_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="parallel"):
        made_report(tmp_path, examples=Examples(["one"], thumbnail))


@pytest.mark.parametrize("kept", [("image", "audio"), ("audio", "text"), ("image", "text", "audio")])
def test_any_two_modalities_make_a_report_whoever_lacks_some(tmp_path, kept):
    """Images 0 to 20, audio 10 to 30, captions of 5 to 25; a report of no common image is refused."""
    axes = np.eye(30)
    embeddings = {}
    for modality, ids, own in (
        ("image", "image_ids", range(20)),
        ("audio", "audio_image_ids", range(10, 30)),
        ("text", "caption_image_ids", range(5, 25)),
    ):
        if modality in kept:
            embeddings |= {modality: axes[list(own)], ids: np.array(own)}
    examples = Examples([f"caption {i}" for i in range(5, 25)], lambda i: thumbnail(i) if i < 20 else None)
    page = made_report(tmp_path, embeddings=embeddings, examples=examples).read_text()
    a, b = {"text": ("audio", "text"), "audio": ("image", "audio")}[kept[1]] if len(kept) == 2 else ("image", "text")
    assert f"{a.capitalize()} to {b}: best and worst" in page and f"{b.capitalize()} to {a}: best and worst" in page
    alone = {name: array for name, array in embeddings.items() if kept[0] in name or name == "caption_image_ids"}
    with pytest.raises(ValueError, match="no two of"):
        made_report(tmp_path, embeddings=alone, examples=examples)


def test_history_is_read_with_its_holes(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,train/a,val/R@1\n0,1.5,\n5,,30\n6,nan,\n")
    rows = read_history(tmp_path / "metrics.csv")
    assert rows == [{"step": 0, "train/a": 1.5}, {"step": 5, "val/R@1": 30}, {"step": 6}]


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the PATH")
def test_a_browser_shows_every_image(tmp_path):
    page = made_report(tmp_path)
    images = page.read_text().count("<img ")
    assert images > 40
    count = (
        "<script>addEventListener('load', () => document.body.dataset.shown = [...document.images]"
        ".filter(i => i.complete && i.naturalWidth > 1).length)</script></body>"
    )
    watched = tmp_path / "watched.html"
    watched.write_text(page.read_text().replace("</body>", count))
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", watched.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert f'data-shown="{images}"' in shown
