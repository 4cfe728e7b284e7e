"""Captions beside references: BLEU-4, METEOR, ROUGE-L and CIDEr as pycocoevalcap has them, with intervals.

Papineni et al. 2002, Denkowski and Lavie 2014, Lin 2004, Vedantam et al. 2015. CIDEr weighs words by how few of the
scored images have them: it is of a whole split, and no average of its parts.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.intervals import Bootstrap, Interval, mean_intervals, paired_test
from eval.tables import markdown, measured_on
from kernels.errors import UserError

CORPUS = ("BLEU-4", "METEOR")
"""Measures that add up counts of all images: no means over them."""
Captions = Mapping[int, Sequence[str]]
"""By image."""


@dataclass(frozen=True)
class CaptionScores:
    """How near captions are to references."""

    values: dict[str, float]
    """Of the whole set, times 100."""
    each: dict[str, np.ndarray]
    """(I,) by image, in the order in which they were given, times 100; none of CORPUS."""

    def intervals(self, bootstrap: Bootstrap) -> dict[str, Interval]:
        """95 % bootstrap intervals over images of the measures that are means."""
        images = np.arange(len(next(iter(self.each.values()))))
        return mean_intervals(self.each, images, bootstrap)

    def gains(self, other: "CaptionScores") -> dict[str, tuple[float, float, float]]:
        """By how much each mean exceeds another's on the same images: difference, and its paired 95 % interval."""
        found = {}
        for name, values in self.each.items():
            test = paired_test(other.each[name], values, np.arange(len(values)))
            found[name] = (test.difference, test.low, test.high)
        return found


def score_captions(written: Mapping[int, str], references: Captions) -> CaptionScores:
    """Score one caption of each image.

    Args:
        written: a caption by image, of two images or more.
        references: captions of the same images, one or more each.

    Raises:
        ValueError: an image has no reference, there is one image only, or Java or pycocoevalcap is missing.
    """
    if len(written) < 2:
        raise UserError(f"{len(written)} captions: CIDEr weighs words by how many images have them, and needs two")
    for image in written:
        if not references.get(image):
            raise UserError(f"image {image} has no reference to compare its caption with")
    given = tokenized({image: [text] for image, text in written.items()})
    wanted = tokenized({image: references[image] for image in written})
    return _scored(wanted, given)


def tokenized(captions: Captions) -> dict[int, list[str]]:
    """Captions in lower case, in the words of the Penn Treebank, without punctuation.

    Raises:
        ValueError: Java or pycocoevalcap is missing.
    """
    if shutil.which("java") is None:
        raise UserError("captions are scored with Java, and there is no `java` here: install a runtime, 8 or newer")
    try:
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError as error:
        raise UserError("pycocoevalcap is not installed: pip install 'mm-align[captions]'") from error
    asked = {}
    for image, texts in captions.items():
        # Java reads a line a caption: one that held a line separator would move all others to the wrong image.
        asked[image] = [{"caption": " ".join(text.split())} for text in texts]
    found: dict[int, list[str]] = PTBTokenizer().tokenize(asked)
    counts = {image: len(texts) for image, texts in captions.items()}
    if {image: len(texts) for image, texts in found.items()} != counts:
        raise RuntimeError("the tokenizer gave back other captions than it was given")
    return found


def _scored(references: dict[int, list[str]], written: dict[int, list[str]]) -> CaptionScores:
    """Scores of tokenized captions."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, written, verbose=0)
    meteor, _ = Meteor().compute_score(references, written)
    values = {"BLEU-4": 100 * float(bleu[3]), "METEOR": 100 * float(meteor)}
    each = {}
    for name, scorer in {"ROUGE-L": Rouge(), "CIDEr": Cider()}.items():
        value, of_image = scorer.compute_score(references, written)
        values[name] = 100 * float(value)
        each[name] = 100 * np.array(of_image, dtype=np.float64)
    return CaptionScores(values, each)


def captions_table(results: Sequence[Mapping[str, Any]]) -> str:
    """What was written of each split, beside the nearest training captions where they were scored.

    Args:
        results: as scripts/eval_captions.py writes them.
    """
    rows = []
    for result in results:
        scores = result["scores"]
        beams = result["decoding"]["beams"]
        row = [Path(result["evaluated"]).name, f"{result['dataset']}/{result['split']}, {result['images']:,} images"]
        row.append("greedy" if beams == 1 else f"{beams} beams")
        row.append(f"**{scores['written']['CIDEr'] / 100:.2f}** ({_between(result['intervals']['written']['CIDEr'])})")
        row.append(f"{scores['nearest']['CIDEr'] / 100:.2f}" if "nearest" in scores else "–")
        row.append(_between(result["gains"]["CIDEr"][1:]) if "nearest" in scores else "–")
        for measure in ("BLEU-4", "METEOR", "ROUGE-L"):
            row.append(", ".join(f"{scores[name][measure]:.1f}" for name in scores))
        rows.append(row)
    heads = ("run", "of", "decoding", "CIDEr", "of the lookup", "gain", "BLEU-4", "METEOR", "ROUGE-L")
    said = (
        "Brackets are 95 % bootstrap intervals over images, of the gain a paired one. The last three are ×100, and of"
        " the lookup behind the comma."
    )
    return f"{markdown(heads, rows)}\n\n{said} {measured_on(results)}."


def _between(interval: Sequence[float]) -> str:
    """An interval of CIDEr."""
    low, high = interval
    return f"{low / 100:.2f} to {high / 100:.2f}"
