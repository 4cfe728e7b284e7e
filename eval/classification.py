"""Zero-shot classification from prompts: class names become captions, and an image or audio clip retrieves its class.

Radford et al. 2021.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eval.figures import Figures, QueryValues, mean_figures
from eval.intervals import DEFAULT_BOOTSTRAP, Bootstrap
from eval.protocols import Protocol, Stated
from eval.retrieval import Ids, RetrievalResult, Vectors, retrieval
from kernels.errors import UserError

IMAGE_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "there is a {} in the scene.")
AUDIO_TEMPLATES = ("the sound of a {}.", "a recording of a {}.", "a {} can be heard.")


def prompts(classes: Sequence[str], templates: Sequence[str] = IMAGE_TEMPLATES) -> list[list[str]]:
    """(C classes) x (P templates) captions. Raises ValueError when a template has no place for the name."""
    for template in templates:
        if "{}" not in template:
            raise UserError(f"the template {template!r} has no {{}} for the class name")
    found = []
    for name in classes:
        found.append([template.format(name) for template in templates])
    return found


def class_vectors(prompt_vectors: Vectors) -> Tensor:
    """(C, P, D) unit vectors of the prompts -> (C, D): their mean, made a unit vector."""
    means = torch.as_tensor(prompt_vectors).float().mean(1)
    return torch.nn.functional.normalize(means, dim=1)


def zero_shot(vectors: Vectors, labels: Ids, prompt_vectors: Vectors, ks: Sequence[int] = (1, 5)) -> RetrievalResult:
    """Retrieval of classes; `recall(1)` is the top-1 accuracy in percent.

    Args:
        vectors: (N, D) of images or audio clips.
        labels: (N,) in 0 .. C-1.
        prompt_vectors: (C, P, D).
        ks: depths.

    Raises:
        ValueError: on a label that names no class.
    """
    classes = class_vectors(prompt_vectors)
    found = np.asarray(torch.as_tensor(labels).cpu())
    if found.min() < 0 or found.max() >= len(classes):
        raise ValueError(f"labels must be in 0 .. {len(classes) - 1}, not {found.min()} .. {found.max()}")
    return retrieval(vectors, classes, found, np.arange(len(classes)), ks)


def zero_shot_figures(
    vectors: Vectors,
    labels: Ids,
    prompt_vectors: Vectors,
    stated: Stated,
    *,
    kind: str,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Figures:
    """`zero_shot` under its protocol: top-1 and, with more than five classes, top-5 accuracy in percent.

    Args:
        vectors: (N, D) of images or audio clips.
        labels: (N,) in 0 .. C-1.
        prompt_vectors: (C, P, D).
        stated: for the protocol.
        kind: what the vectors are of, `images` or `audio clips`, for the protocol.
        bootstrap: over images or audio clips.
    """
    classes, per_class = torch.as_tensor(prompt_vectors).shape[:2]
    ks = (1, 5) if classes > 5 else (1,)
    result = zero_shot(vectors, labels, prompt_vectors, ks)
    protocol = Protocol(
        stated.dataset,
        stated.split,
        images=len(result.ranks),
        captions=classes * per_class,
        captions_per_image=f"{per_class} a class",
        recall="none",
        trained_on=stated.trained_on,
        skipped=stated.skipped,
        task=f"zero-shot classification of {kind} among {classes} classes, {per_class} prompts each, by cosine",
    )
    values = {f"top-{k} accuracy": 100 * result.hits[:, index] for index, k in enumerate(ks)}
    each_for_itself = np.arange(len(result.ranks))
    return mean_figures(protocol, [QueryValues(each_for_itself, values)], {}, bootstrap)
