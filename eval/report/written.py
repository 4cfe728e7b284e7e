"""The report of captions that a model wrote: scores, a baseline, the best and the worst, and where words looked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from eval.captions import CORPUS
from eval.report.cards import TONES
from eval.report.exhibits import AttentionMap
from eval.report.galleries import attention_maps
from eval.report.markup import (
    EMPTY,
    Cell,
    Section,
    Table,
    card,
    facts,
    grid,
    image,
    joined,
    note,
    page,
    player,
    table,
    verdict,
)
from eval.report.media import Clip, photo, spectrogram

JUDGE = "CIDEr"
"""The measure by which captions are best or worst, and by which the baseline is beaten."""


@dataclass(frozen=True)
class WrittenCaption:
    """A caption that is shown."""

    kind: str
    """`best`, `usual` or `worst`."""
    image_id: int
    written: str
    nearest: str
    """The training caption that is nearest to the image; empty where none was looked for."""
    references: Sequence[str]
    score: float
    """CIDEr."""
    picture: Image.Image | None = None
    clip: Clip | None = None


def write_captions_report(
    path: Path,
    result: Mapping[str, Any],
    shown: Sequence[WrittenCaption],
    looks: Sequence[AttentionMap],
) -> Path:
    """Write the report of one evaluation of captions.

    Args:
        path: of the report.
        result: as `mm.evaluation.captions` writes it.
        shown: captions to look at.
        looks: where the words of some of them looked.

    Returns:
        the path.
    """
    parts = [Section("scores", "Scores, with a baseline", table(_scores(result)))]
    parts.append(Section("captions", "The best, some as usual, and the worst", grid(_card(each) for each in shown)))
    if looks:
        said = "Where each word looked when it was written, above even attention: dark is what it does not see."
        parts.append(Section("attention", "Where words looked", attention_maps(looks), said))
    title = f"{result['evaluated']} writes of {result['dataset']}/{result['split']}"
    words = [
        ("images", f"{result['images']:,}"),
        ("references each", f"{result['references'] / result['images']:.1f}"),
        ("trained on", str(result["trained_on"])),
        ("trunks have seen", str(result["pretraining"])),
        ("hardware", str(result["hardware"])),
        ("commit", str(result["commit"])),
    ]
    sentences, tone = judged(result)
    path.write_text(page(title, verdict(sentences, tone) + facts(words), parts), encoding="utf-8")
    return path


def judged(result: Mapping[str, Any]) -> tuple[list[str], str]:
    """What to think of the captions, in sentences, and their tone."""
    value = result["scores"]["written"][JUDGE]
    low, high = result["intervals"]["written"][JUDGE]
    first = f"CIDEr {value / 100:.2f} (95 % interval {low / 100:.2f} to {high / 100:.2f})"
    if "nearest" not in result["scores"]:
        return [f"{first}, beside no baseline."], "open"
    gain, lowest, highest = result["gains"][JUDGE]
    nearest = result["scores"]["nearest"][JUDGE]
    beside = f"{nearest / 100:.2f} of the nearest training caption"
    between = f"{gain / 100:+.2f} [{lowest / 100:+.2f}, {highest / 100:+.2f}]"
    if lowest > 0:
        return [f"{first}: better than the {beside}, {between}."], "good"
    if highest < 0:
        return [f"{first}: worse than the {beside}, {between}."], "bad"
    return [f"{first}: not to be told from the {beside}, {between}."], "open"


def _scores(result: Mapping[str, Any]) -> Table:
    """A row for each measure; the model's own opinion below."""
    scores = result["scores"]
    others = [name for name in scores if name != "written"]
    heads = ["measure, ×100", "written", *(f"{name} training caption" for name in others)]
    rows = []
    for measure, value in scores["written"].items():
        cells = [Cell(measure), Cell(f"{value:.1f}", _interval(result, "written", measure))]
        cells += [Cell(f"{scores[name][measure]:.1f}", _interval(result, name, measure)) for name in others]
        rows.append(cells)
    similar = result["similarity"]
    rows.append([Cell("cosine to its image, by the model itself"), *(Cell(f"{100 * similar[n]:.1f}") for n in scores)])
    said = (
        f"Small print: 95 % intervals, bootstraps over images; {' and '.join(CORPUS)} count over the whole set and have"
        f" none. The cosine is the model's own opinion, {100 * similar['references']:.1f} of the references: no measure"
        " of quality."
    )
    return Table(f"{result['images']:,} images, {result['references']:,} references", heads, rows, said)


def _interval(result: Mapping[str, Any], name: str, measure: str) -> str:
    found = result["intervals"][name].get(measure)
    return f"{found[0]:.1f}-{found[1]:.1f}" if found else ""


def _card(shown: WrittenCaption) -> Markup:
    """What was described, what was written of it, and what people wrote."""
    seen = EMPTY
    if shown.picture is not None:
        seen = image(photo(shown.picture), f"image {shown.image_id}")
    elif shown.clip is not None:
        seen = player(shown.clip.uri, spectrogram(shown.clip.spectrogram), f"sound {shown.image_id}")
    lines = [Markup("<blockquote>{}</blockquote>").format(shown.written or "(nothing)")]
    if shown.nearest:
        lines.append(note(f"Nearest training caption: {shown.nearest}"))
    lines.append(note("People wrote: " + " · ".join(shown.references)))
    body = joined([Markup('<div class="query">{}</div>').format(seen), *lines])
    return card(f"{shown.kind.capitalize()}: CIDEr {shown.score / 100:.2f}", body, TONES[shown.kind])
