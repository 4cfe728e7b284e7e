"""What a split could not use, counted by reason and said in one line."""

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)


def counts_line(skipped: Mapping[str, int]) -> str:
    """Such as "2 × missing image, 1 × empty caption"; empty if nothing was skipped."""
    parts = [f"{count} × {reason}" for reason, count in skipped.items()]
    return ", ".join(parts)


def warn_of_skipped(name: str, skipped: Mapping[str, int]) -> None:
    """Log what the split `name` could not use, if there was anything."""
    if skipped:
        logger.warning("%s: skipped %s", name, counts_line(skipped))
