"""Files that a killed process never leaves half written, folders that one process writes at a time, and names that
stay in their folder.
"""

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from kernels.errors import UserError


class InUseError(UserError):
    """Another process holds a lock; the message says which."""


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Atomic: what was there stays until the new file is whole. Makes the folder; `indent` None for what only programs
    read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = private_name(path)
    temporary.write_text(json.dumps(content, indent=indent) + "\n")
    temporary.replace(path)


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, stated: str | None) -> None:
    """Raise UserError where a file is not the one of a checksum; None of files older than their checksums."""
    if stated is not None and sha256(path) != stated:
        raise UserError(
            f"{path} is damaged or another file: its sha256 is not the one it was saved with; copy it again"
        )


def private_name(path: Path) -> Path:
    """A name beside a path that no other process uses, for what is renamed to it once it is whole."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a path against other processes, by a hidden file beside it that names the holder.

    Raises InUseError at once where another process holds it and `wait` is False.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InUseError(file.read().strip() or "another process") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def leaves_folder(name: str) -> bool:
    """Whether a file name that was read from data would lead out of the folder it is joined to.

    A backslash is refused as the separator of another system's names. A colon, as in `12:30.jpg`, is a character like
    any other wherever this program runs.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return True
    return "\\" in name


def is_of_the_disk(error: OSError) -> bool:
    """Whether a path that the user gave is not there or not allowed, or the disk is full."""
    return error.filename is not None or error.errno == errno.ENOSPC
