"""What a split could not use, counted by reason and said in one line."""

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

logger = logging.getLogger(__name__)
T = TypeVar("T")
NAMED = 20
"""How many unreadable files of a split the log names."""


def counts_line(skipped: Mapping[str, int]) -> str:
    """Such as "2 × missing image, 1 × empty caption"; empty if nothing was skipped."""
    parts = [f"{count} × {reason}" for reason, count in skipped.items()]
    return ", ".join(parts)


def warn_of_skipped(name: str, skipped: Mapping[str, int]) -> None:
    """Log what the split `name` could not use, if there was anything."""
    if skipped:
        logger.warning("%s: skipped %s", name, counts_line(skipped))


class Unreadable:
    """The files of a split that do not decode: each is an absence, named in the log and counted once.

    Args:
        name: of the split.
        skipped: the split's counts, to which `unreadable image` and `unreadable audio` are added as files are met.
    """

    def __init__(self, name: str, skipped: dict[str, int]) -> None:
        self.name = name
        self.skipped = skipped
        self.files: dict[str, tuple[str, str]] = {}
        """File -> its modality, and why it does not decode."""

    def attempt(self, modality: str, file: str, decode: Callable[[], T]) -> T | None:
        """What `decode` gives; None where it raises OSError or ValueError, as of a file that is no image.

        Args:
            modality: `image` or `audio`.
            file: its name.
            decode: reads and decodes the file.
        """
        try:
            return decode()
        except (OSError, ValueError) as error:
            self._note(modality, file, str(error))
            return None

    def _note(self, modality: str, file: str, reason: str) -> None:
        if file in self.files:
            return
        self.files[file] = (modality, reason)
        kind = unreadable(modality)
        self.skipped[kind] = self.skipped.get(kind, 0) + 1
        if len(self.files) <= NAMED:
            logger.warning("%s: %s; the sample goes on without its %s", self.name, reason, modality)
        if len(self.files) == NAMED:
            logger.warning("%s: further files that do not decode are counted, not named", self.name)


def unreadable(modality: str) -> str:
    """What files of a modality that do not decode are counted as."""
    return f"unreadable {modality}"
