"""`mm-align generate`: captions of images and of sounds, and texts continued."""

from pathlib import Path

from kernels.errors import UserError
from mm.infer.decoding import Decoding


def generate(
    model: str,
    images: list[Path] | None = None,
    audio: list[Path] | None = None,
    prefix: str = "",
    decoding: Decoding = Decoding(),  # noqa: B008  # frozen
    device: str = "auto",
) -> None:
    """Print a text for each image or sound, or what follows a prefix.

    Args:
        model: a finished run that was trained with model.generate=true.
        images: files to describe.
        audio: files to describe.
        prefix: what every text begins with.
        decoding: how tokens are chosen.
        device: auto is the GPU where there is one; or a device as torch names it.
    """
    from mm.infer.embedder import Embedder
    from mm.infer.loading import load

    opened = load(model, device)
    if not isinstance(opened, Embedder):
        raise UserError(f"{model} embeds and does not write: name a finished run")
    if not images and not audio:
        print(opened.generate(prefix=prefix, decoding=decoding))
        return
    for modality, files in (("image", images), ("audio", audio)):
        if files:
            texts = opened.generate(**{modality: files}, prefix=prefix, decoding=decoding)
            for file, text in zip(files, texts, strict=True):
                print(f"{file}\t{text}")
