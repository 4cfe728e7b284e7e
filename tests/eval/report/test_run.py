"""The report: complete, self-contained, and looked at by a real browser."""

import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from eval.diagnostics import Diagnostics
from eval.protocols import Protocol
from eval.report.cards import Examples
from eval.report.exhibits import AttentionMap, CodeMap, Exhibits, Material, Reconstruction
from eval.report.history import numeric_rows
from eval.report.media import Clip
from eval.report.run import write_report
from eval.report.tables import Baseline

EVIL = "<script>alert(1)</script>"
PROTOCOL = Protocol("scenes", "val", 30, 150, "5", rerank_depth=2, pretraining="image: pairs")
LONG = "a very long name of a column that nobody would break /".replace(" ", "_")


def thumbnail(image_id):
    return Image.fromarray(np.full((32, 48, 3), (image_id % 256, 120, 255 - image_id % 256), np.uint8))


def exhibits():
    rng = np.random.default_rng(0)
    image, spectrum = thumbnail(9), rng.random((8, 20))
    maps = [CodeMap(thumbnail(7 * n), rng.integers(0, 5, (4, 4))) for n in range(5)]
    weights = rng.random((3, 4, 4))
    weights /= weights.sum((1, 2), keepdims=True)
    decoded = {
        "image": [Reconstruction(image, image)],
        "audio": [Reconstruction(spectrum, spectrum / 2)],
        "text": [Reconstruction("a red dog", f"a {EVIL} dog")],
    }
    attention = [AttentionMap(image, ["one", EVIL, "three"], weights)]
    return Exhibits(decoded, maps, attention, [replace(attention[0], kind="Best")], {"Moon": "it is made of cheese"})


def material():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((30, 16))
    text = np.repeat(image, 5, 0) + 1.2 * rng.standard_normal((150, 16))
    image, text = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (image, text))
    ids = np.arange(30) * 7
    embeddings = {
        "image": image,
        "text": text,
        "image_ids": ids,
        "caption_image_ids": np.repeat(ids, 5),
        "audio": image[:20] + 0.1,
        "audio_image_ids": ids[:20],
    }
    counted = Diagnostics(
        {"image": rng.integers(0, 9, (2, 64)), "text": rng.integers(0, 99, (1, 64))},
        {"image": rng.integers(0, 50, (3, 16)), "text": rng.integers(0, 50, (3, 16))},
    )
    clip = Clip(silence(), "audio/wav", rng.random((8, 20)))
    captions = [f"caption {i} {EVIL}" for i in range(150)]
    return Material(
        embeddings, counted, Examples(captions, thumbnail, lambda i: f"words {EVIL}", lambda i: clip), exhibits()
    )


def silence():
    """A tenth of a second of WAV."""
    samples = bytes(1600)
    head = b"RIFF" + (36 + len(samples)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    form = b"".join(n.to_bytes(size, "little") for n, size in ((1, 2), (1, 2), (8000, 4), (16000, 4), (2, 2), (16, 2)))
    return head + form + b"data" + len(samples).to_bytes(4, "little") + samples


RESULT = {
    "metrics": {
        "image_to_text/R@1": 61.2,
        "image_to_text/R@10": 90.0,
        "text_to_image/R@1": 48.0,
        "text_to_image/R@10": 70.0,
        "RSUM": 400.0,
        LONG: 1.0,
    },
    "intervals": {"image_to_text/R@1": [55.0, 67.0], "text_to_image/R@1": [40.0, 50.0]},
    "seconds": 12.5,
    "parameters_total": 1234567,
    "evaluated": EVIL,
    "protocol": {"val": asdict(PROTOCOL)},
    "config": {"train": {"steps": 300}, "schedule": {"kind": "progressive", "stage2": 0.3, "stage3": 0.6}},
}
HISTORY = numeric_rows(
    {
        "step": s,
        "stage": 1 + s // 100,
        "train/contrastive": 5 * np.exp(-s / 90),
        "train/vq": 1.0,
        "val/RSUM": s if s % 100 == 0 else "",
        "gradient_norm": 3.0,
    }
    for s in range(0, 300, 10)
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of everything, and where it lies."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    baseline = Baseline(f"stored {EVIL}", {"image_to_text/R@1": 50.0})
    return write_report(path, result=RESULT, material=material(), history=HISTORY, baseline=baseline)


def anchors(path):
    return re.findall(r'<section id="([\w-]+)"', path.read_text())


def test_a_report_says_first_what_to_think_and_holds_every_part(made):
    page = made.read_text()
    assert page.index("Far above chance in both directions") < page.index("<section")
    assert anchors(made) == [
        *("figures", "recall", "examples", "attention", "written", "code-maps", "reconstructions"),
        *("validation", "losses", "logged", "codes", "experts", "absent"),
    ]
    assert "55.0–67.0" in page and "image: pairs" in page and "1,234,567" in page and "12.5" in page
    assert page.count("stage 3</title>") >= 3 and "<b>Moon</b>: it is made of cheese" in page
    assert page.count("<audio") == 6 and "Reconstructions from codes" in page


def test_nothing_comes_from_outside_and_no_caption_is_markup(made):
    page = made.read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script>" not in page
    assert "caption 5 &lt;script&gt;" in page or "&lt;script&gt;" in page
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links and links <= set(re.findall(r'id="([^"]+)"', page))


def test_what_is_absent_is_said_and_not_drawn(tmp_path):
    few = Material(material().embeddings)
    path = write_report(tmp_path / "report.html", result=RESULT | {"config": {}}, material=few, title="mine")
    page = path.read_text()
    assert anchors(path) == ["figures", "recall", "absent"] and "<h1>mine</h1>" in page
    for name in ("Retrieved", "Training", "Codes in use", "Load of the experts"):
        assert f"<b>{name}</b>: " in page
    assert "No baseline" in page
    alone = write_report(tmp_path / "numbers.html", result=RESULT, material=Material())
    assert anchors(alone) == ["figures", "absent"]


def test_captions_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="parallel"):
        short = replace(material(), examples=Examples(["one"], thumbnail))
        write_report(tmp_path / "report.html", result=RESULT, material=short)


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
    path = tmp_path / "report.html"
    page = write_report(path, result=RESULT, material=Material(embeddings, examples=examples)).read_text()
    a, b = {"text": ("audio", "text"), "audio": ("image", "audio")}[kept[1]] if len(kept) == 2 else ("image", "text")
    assert f"{a.capitalize()} → {b}: best, usual" in page and f"{b.capitalize()} → {a}: best, usual" in page
    alone = {name: array for name, array in embeddings.items() if kept[0] in name or name == "caption_image_ids"}
    with pytest.raises(ValueError, match="no two of"):
        write_report(path, result=RESULT, material=Material(alone, examples=examples))


LOOK = """(async () => {
  const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => { x /= 255;
    return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4 });
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2] };
  const contrast = (a, b) => { const [x, y] = [light(a), light(b)];
    return (Math.max(x, y) + .05) / (Math.min(x, y) + .05) };
  const broken = [], all = s => [...document.querySelectorAll(s)];
  for (const i of document.images) await i.decode().catch(() => broken.push(i.alt));
  for (const i of all("svg image")) await i.decode().catch(() => broken.push(i.id));
  const box = e => e.getBoundingClientRect(), style = e => getComputedStyle(e);
  const shown = e => !e.closest("details:not([open])") && !e.closest(".unseen");
  const silent = [];
  for (const a of all("audio")) for (let n = 0; !(a.duration > 0); n++) {
    if (n > 50) { silent.push(a.error?.message || "no duration"); break }
    await new Promise(done => setTimeout(done, 100)) }
  return {
    broken, silent, images: document.images.length, over: document.documentElement.scrollWidth - innerWidth,
    outside: all("body *").filter(e => shown(e) && !e.closest(".scroll > table") && !e.closest("svg")
      && (box(e).right > innerWidth + 1 || box(e).left < -1)).map(e => e.outerHTML.slice(0, 80)),
    collapsed: all("h1, h2, h3, h4, .verdict, .card, .scroll, main figure, audio").filter(e =>
      shown(e) && (box(e).width < 20 || box(e).height < 8)).map(e => e.outerHTML.slice(0, 80)),
    cropped: [...document.images].filter(i => shown(i) && !i.closest(".clip, .heat")
      && (Math.abs(i.width / i.height * i.naturalHeight / i.naturalWidth - 1) > .04
        || style(i).objectFit != "fill")).map(i => i.alt),
    faint: all("p, td, th, li, dt, dd, figcaption, a, small, h2, summary, mark").filter(e => shown(e) && contrast(
      style(e).color, style(e.closest(".card, .verdict") || document.body).backgroundColor) < 4.5)
      .map(e => e.outerHTML.slice(0, 80)),
    unnamed: all("img, svg, audio, [tabindex]").filter(e => shown(e)
      && !(e.alt || e.getAttribute("aria-label"))).map(e => e.outerHTML.slice(0, 80)),
    ground: style(document.body).backgroundColor }
})()"""


def test_a_browser_shows_all_of_it_narrow_and_wide_light_and_dark(made, browser):
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}
    for width, scheme in ((420, "light"), (420, "dark"), (1280, "light")):
        seen = browser.look(made, LOOK, width, scheme)
        assert seen.pop("ground") == grounds[scheme] and seen.pop("images") > 40
        assert seen.pop("over") <= 0
        assert {name: found for name, found in seen.items() if found} == {}, f"at {width} pixels, {scheme}"
