"""Reconstructions, code maps and attention maps as Markup."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

from eval.report.exhibits import AttentionMap, CodeMap, Form, Reconstruction
from eval.report.markup import Text, figure, grid, image, joined, note, subheading
from eval.report.media import Source, limits_of, photo, spectrogram, veil

MAPS = 6
"""Images whose codes are drawn over them."""
CODES = 8
"""Codes whose patches are put side by side."""
PATCHES = 8
"""Of each."""
PATCH = 40
"""Pixels per side of a patch that is shown."""
GAP = (128, 128, 128)
"""Colour between patches."""
DETAIL = 8
"""Pixels per side of a patch whose detail is measured."""
HUES = 16
"""Colours of the codes of a map."""


def reconstructions(found: Mapping[str, Sequence[Reconstruction]]) -> Markup:
    """Inputs beside what is decoded from their codes, by modality."""
    parts: list[Markup] = []
    for modality, pairs in found.items():
        if not pairs:
            continue
        parts.append(subheading(modality.capitalize()))
        if isinstance(pairs[0].given, str):
            parts.append(_captions(pairs))
        else:
            parts.append(grid([_pair(modality, number, pair) for number, pair in enumerate(pairs, 1)], "multiples"))
    return joined(parts)


def _pair(modality: str, number: int, pair: Reconstruction) -> Markup:
    """Both on one scale of colours."""
    limits = limits_of(pair.given) if isinstance(pair.given, np.ndarray) else None
    given, decoded = _still(pair.given, limits), _still(pair.decoded, limits)
    kind = "clip" if modality == "audio" else "still"
    body = Markup('<div class="pair {}">{}{}</div>').format(
        kind,
        image(given, f"{modality} {number}, input"),
        image(decoded, f"{modality} {number}, decoded from its codes"),
    )
    return figure(body)


def _still(form: Form, limits: tuple[float, float] | None) -> Source:
    """An image or a spectrogram."""
    if isinstance(form, Image.Image):
        return photo(form)
    assert isinstance(form, np.ndarray)  # captions have a table
    return spectrogram(form, limits)


def _captions(pairs: Sequence[Reconstruction]) -> Markup:
    """Captions with their reconstructions below, words that differ marked, and how many agree."""
    items = []
    same = total = 0
    for pair in pairs:
        given, decoded = str(pair.given).split(), str(pair.decoded).split()
        right = [place < len(given) and given[place] == word for place, word in enumerate(decoded)]
        same += sum(right)
        total += len(given)
        words = [
            word if agrees else Markup("<mark>{}</mark>").format(word)
            for word, agrees in zip(decoded, right, strict=True)
        ]
        below = Markup('<br><span class="decoded">{}</span>').format(Markup(" ").join(words))
        items.append(Markup("<li>{}{}</li>").format(pair.given, below))
    listed = Markup('<ol class="captions">{}</ol>').format(joined(items))
    return listed + note(f"{same} of {total} words stand where they stood; those that do not are marked.")


def code_maps(maps: Sequence[CodeMap]) -> Markup:
    """Images with the codes of their patches drawn over them, and patches of different images that share a code."""
    shown = maps[:MAPS]
    shared = _shared(shown)
    drawn = [
        figure(_mapped(each, number, shared), f"{len(np.unique(each.codes))} codes in {each.codes.size} patches")
        for number, each in enumerate(shown, 1)
    ]
    strips = _strips(maps)
    parts: list[Text] = [grid(drawn, "cards")]
    if strips:
        parts += [
            subheading("Patches of different images that share a code"),
            note("With half a patch around each; codes of at least three images, the most detailed patches first."),
            grid(strips, "strips"),
        ]
    return joined(parts)


def _shared(maps: Sequence[CodeMap]) -> dict[int, int]:
    """Codes that stand for more than one patch -> number of their colour, the most frequent first."""
    counts = Counter(code for each in maps for code in each.codes.ravel().tolist())
    return {code: place % HUES for place, (code, count) in enumerate(counts.most_common()) if count > 1}


def _mapped(each: CodeMap, number: int, shared: Mapping[int, int]) -> Markup:
    """An image with a coloured square, and the code's number, over each patch whose code is shared."""
    rows, columns = each.codes.shape
    source = photo(each.image, 320)
    width, height = 100.0, 100.0 * source.height / source.width
    cells = []
    for (row, column), code in np.ndenumerate(each.codes):
        if code in shared:
            cells.append(
                _patch(column * width / columns, row * height / rows, width / columns, height / rows, code, shared)
            )
    words = f"image {number}: patches that share a code with another patch of these images have its colour and number"
    return Markup('<svg class="map" viewBox="0 0 {:.0f} {:.1f}" role="img" aria-label="{}">{}{}</svg>').format(
        width, height, words, _placed(source.uri, width, height), joined(cells)
    )


def _patch(x: float, y: float, width: float, height: float, code: int, shared: Mapping[int, int]) -> Markup:
    colour = f"hsl({360 * shared[code] / HUES:.0f} 90% 55%)"
    number = Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(x + width / 2, y + height / 2, code)
    return Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}" stroke="{}"/>{}').format(
        x + 0.4, y + 0.4, width - 0.8, height - 0.8, colour, colour, number if width > 9 else ""
    )


def _placed(uri: str, width: float, height: float) -> Markup:
    return Markup('<image href="{}" width="{:.1f}" height="{:.1f}" preserveAspectRatio="none"/>').format(
        uri, width, height
    )


def _details(each: CodeMap) -> np.ndarray:
    """(rows, columns), how much the brightness varies within each patch."""
    rows, columns = each.codes.shape
    small = each.image.convert("L").resize((columns * DETAIL, rows * DETAIL))
    blocks = np.asarray(small, dtype=np.float64).reshape(rows, DETAIL, columns, DETAIL)
    return blocks.std((1, 3))


def _strips(maps: Sequence[CodeMap]) -> list[Markup]:
    """Patches of the codes that at least three images have, one an image; those with most detail first.

    A code of a plain background is the most frequent, and the least that there is to see.
    """
    details = [_details(each) for each in maps]
    found: dict[int, list[tuple[float, int, int, int]]] = {}
    for number, (each, detail) in enumerate(zip(maps, details, strict=True)):
        for code in np.unique(each.codes).tolist():
            row, column = np.unravel_index(int(np.where(each.codes == code, detail, -1).argmax()), detail.shape)
            found.setdefault(code, []).append((float(detail[row, column]), number, int(row), int(column)))
    many = {code: places for code, places in found.items() if len(places) > 2}
    order = sorted(many, key=lambda code: -float(np.median([place[0] for place in many[code]])))
    strips = []
    for code in order[:CODES]:
        patches = [_patch_image(maps[number], row, column) for _, number, row, column in many[code][:PATCHES]]
        strip = Image.new("RGB", (len(patches) * (PATCH + 2) - 2, PATCH), GAP)
        for place, patch in enumerate(patches):
            strip.paste(patch, (place * (PATCH + 2), 0))
        words = f"code {code}: in {len(many[code])} of {len(maps)} images"
        strips.append(figure(image(photo(strip, strip.width), words), words))
    return strips


def _patch_image(each: CodeMap, row: int, column: int) -> Image.Image:
    """A patch with half a patch around it, where the image has it."""
    high, wide = each.image.height / each.codes.shape[0], each.image.width / each.codes.shape[1]
    left, top = max(0.0, (column - 0.5) * wide), max(0.0, (row - 0.5) * high)
    right, bottom = min(each.image.width, (column + 1.5) * wide), min(each.image.height, (row + 1.5) * high)
    kind = Image.Resampling.NEAREST if wide < PATCH / 3 else Image.Resampling.BILINEAR
    return each.image.convert("RGB").resize((PATCH, PATCH), kind, (left, top, right, bottom))


def attention_maps(maps: Sequence[AttentionMap], anchor: str = "seen") -> Markup:
    """For each caption its image, once for each word, dark where the word does not look; `anchor` begins the names of
    the images, which a page has once."""
    parts: list[Markup] = []
    for number, each in enumerate(maps, 1):
        source = photo(each.image, 200)
        name = f"{anchor}-{number}"
        words = [_word(word, weights, source, name) for word, weights in zip(each.words, each.weights, strict=True)]
        caption = " ".join(each.words)
        caption = f"{each.kind}: {caption}" if each.kind else caption
        whole = figure(image(source, f"the image of caption {number}"), "the image")
        parts += [_defined(source, name), subheading(caption), grid([whole, *words], "words")]
    return joined(parts)


def _defined(source: Source, name: str) -> Markup:
    """The image once, for every word to refer to."""
    body = Markup('<image id="{}" href="{}" width="{}" height="{}"/>').format(
        name, source.uri, source.width, source.height
    )
    return Markup('<svg class="unseen" aria-hidden="true"><defs>{}</defs></svg>').format(body)


def _word(word: str, weights: np.ndarray, source: Source, name: str) -> Markup:
    """The image of a caption under a veil that is clear where a word looks, and how far its peak is above even."""
    peak = float(weights.max()) * weights.size / max(float(weights.sum()), 1e-12)
    row, column = (int(place) for place in np.unravel_index(int(weights.argmax()), weights.shape))
    high, wide = weights.shape
    where = f"{_third(row, high, 'top', 'bottom')} {_third(column, wide, 'left', 'right')}"
    drawn = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><use href="#{}"/>{}</svg>').format(
        source.width,
        source.height,
        f"{word}: looks most at the {where}",
        name,
        _placed(veil(weights).uri, source.width, source.height),
    )
    return figure(drawn, Markup("{} <small>×{:.1f}</small>").format(word, peak))


def _third(place: int, count: int, first: str, last: str) -> str:
    """Which third of an axis a place is in."""
    share = (place + 0.5) / count
    if share < 1 / 3:
        return first
    return last if share > 2 / 3 else "middle"
