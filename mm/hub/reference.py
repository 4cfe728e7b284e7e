"""The name of a repository on a hub, and of one version of it."""

import re
from dataclasses import dataclass

from kernels.errors import UserError

SCHEME = "hf://"
WRITTEN = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w.-]*(/\w[\w.-]*)*))?", re.ASCII)


@dataclass(frozen=True)
class Reference:
    """A repository, and a branch, tag or commit of it; None is the newest version."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    @property
    def name(self) -> str:
        """The repository's, without whose it is."""
        return self.repository.partition("/")[2]

    @classmethod
    def of(cls, written: str) -> "Reference":
        """Read `org/name`, `org/name@revision`, or one of them behind `hf://`.

        Raises:
            ValueError: it is neither, or would be a path that leads elsewhere.
        """
        found = WRITTEN.fullmatch(written.removeprefix(SCHEME))
        if found is None:
            raise UserError(f"{written!r} is no repository: write org/name or org/name@revision")
        return cls(found["repository"], found["revision"])


def is_reference(name: object) -> bool:
    """Whether a model's name says that it lies on a hub."""
    return str(name).startswith(SCHEME)
