"""What a report shows beside figures: plain images, arrays and words that whoever knows the model has made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from eval.diagnostics import Diagnostics
from eval.report.cards import Examples

Form = Image.Image | np.ndarray | str
"""An image, a spectrogram (bands, frames), or a caption."""


@dataclass(frozen=True)
class Reconstruction:
    """An input, and what is decoded from its codes."""

    given: Form
    decoded: Form


@dataclass(frozen=True)
class CodeMap:
    """An image as the model sees it, and the code of each of its patches."""

    image: Image.Image
    codes: np.ndarray
    """(rows, columns) int."""


@dataclass(frozen=True)
class AttentionMap:
    """Where the words of a caption look in its image."""

    image: Image.Image
    words: Sequence[str]
    weights: np.ndarray
    """(W, rows, columns) >= 0; a word's sum to one over its image."""
    kind: str = ""
    """Why it is shown, as `Best`; empty where there is no reason to name."""


@dataclass(frozen=True)
class Exhibits:
    """What is shown of a model; `absent` says why a part is not."""

    reconstructions: Mapping[str, Sequence[Reconstruction]] = field(default_factory=dict)
    """By modality."""
    code_maps: Sequence[CodeMap] = ()
    attention: Sequence[AttentionMap] = ()
    written: Sequence[AttentionMap] = ()
    """Captions that the model wrote."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """What is not there -> why."""


@dataclass(frozen=True)
class Material:
    """All that a report of one evaluation is made of, beside its result."""

    embeddings: Mapping[str, ArrayLike] = field(default_factory=dict)
    """The arrays of embeddings.npz; none where nothing was embedded."""
    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    """Use of codes and load of experts."""
    examples: Examples | None = None
    """Captions, images and audio; None where the data is not there."""
    exhibits: Exhibits = field(default_factory=Exhibits)
