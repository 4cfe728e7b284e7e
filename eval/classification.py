"""Zero-shot classification from prompts: class names become captions, and a picture or a sound retrieves its class."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from eval.protocols import Figures, Protocol, mean_figures
from eval.retrieval import RetrievalResult, retrieval

IMAGE_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "there is a {} in the scene.")
AUDIO_TEMPLATES = ("the sound of a {}.", "a recording of a {}.", "a {} can be heard.")


def prompts(classes: Sequence[str], templates: Sequence[str] = IMAGE_TEMPLATES) -> list[list[str]]:
    """(C classes) x (P templates) captions. Raises ValueError when a template has no place for the name."""
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template {template!r} has no {{}} for the class name")
    return [[template.format(name) for template in templates] for name in classes]


def class_vectors(prompt_vectors: Tensor | ArrayLike) -> Tensor:
    """(C, P, D) unit vectors of the prompts -> (C, D): their mean, made a unit vector (Radford et al. 2021)."""
    return torch.nn.functional.normalize(torch.as_tensor(prompt_vectors).float().mean(1), dim=1)


def zero_shot(
    vectors: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
    prompt_vectors: Tensor | ArrayLike,
    ks: Sequence[int] = (1, 5),
) -> RetrievalResult:
    """vectors (N, D) of pictures or sounds, labels (N,) in 0 .. C-1, prompt_vectors (C, P, D): `recall(1)` is the top-1
    accuracy in percent. Raises ValueError on a label that names no class."""
    classes = class_vectors(prompt_vectors)
    found = np.asarray(torch.as_tensor(labels).cpu())
    if found.min() < 0 or found.max() >= len(classes):
        raise ValueError(f"labels must be in 0 .. {len(classes) - 1}, not {found.min()} .. {found.max()}")
    return retrieval(vectors, classes, found, np.arange(len(classes)), ks)


def zero_shot_figures(
    vectors: Tensor | ArrayLike,
    labels: Tensor | ArrayLike,
    prompt_vectors: Tensor | ArrayLike,
    *,
    dataset: str,
    split: str,
    kind: str,
    trained_on: str = "unstated",
    skipped: int = 0,
    samples: int = 1000,
    seed: int = 0,
) -> Figures:
    """`zero_shot` as stamped figures, top-1 and, with more than five classes, top-5 accuracy in percent.

    kind: what the vectors are of, `images` or `sounds`, for the stamp.
    """
    classes, per_class = torch.as_tensor(prompt_vectors).shape[:2]
    ks = (1, 5) if classes > 5 else (1,)
    result = zero_shot(vectors, labels, prompt_vectors, ks)
    protocol = Protocol(
        dataset,
        split,
        images=len(result.ranks),
        captions=classes * per_class,
        captions_per_image=f"{per_class} a class",
        recall="none",
        trained_on=trained_on,
        skipped=skipped,
        task=f"zero-shot classification of {kind} among {classes} classes, {per_class} prompts each, by cosine",
    )
    item = np.arange(len(result.ranks))
    values = {f"top-{k} accuracy": 100 * result.hits[:, index] for index, k in enumerate(ks)}
    return mean_figures(protocol, values, dict.fromkeys(values, item), samples=samples, seed=seed)
