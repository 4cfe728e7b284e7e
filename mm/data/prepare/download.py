"""The official COCO archives: fetched with resuming, checked, unpacked.

Lin et al. 2014, arXiv:1405.0312; Karpathy & Fei-Fei 2015, arXiv:1412.2306 (the split file).
"""

import logging
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from kernels.errors import MissingError, UserError
from mm.data.prepare.console import console, download_bar
from mm.files import leaves_folder

logger = logging.getLogger(__name__)
OFFICIAL = "http://images.cocodataset.org"
KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
ATTEMPTS = 5
CHUNK = 1 << 20
"""Bytes read at a time."""

Progress = Callable[[int, int], None]
"""Called with (bytes there, bytes in all)."""


def download_coco(root: Path, year: str, splits: Sequence[str], karpathy: bool, mirror: str | None) -> None:
    """Fetch into `root` and unpack there what these splits need, with a bar for each archive.

    Raises OSError for an archive that cannot be had whole, ValueError for a broken one.
    """
    parts = _parts(splits, year)
    for address in archives(year, parts, karpathy, mirror):
        title = PurePosixPath(address).name
        with download_bar(title) as progress:
            archive = fetch(address, root, progress)
        written = unpack(archive, root)
        console.print(f"{archive}: {written} files unpacked")


def archives(year: str, parts: Iterable[str], karpathy: bool, mirror: str | None) -> list[str]:
    """Addresses of what splits made of `parts` (train, val) need.

    A mirror keeps the official paths below its address; Karpathy's archive lies at its top.
    """
    base = (mirror or OFFICIAL).rstrip("/")
    addresses = []
    for part in sorted(set(parts)):
        addresses.append(f"{base}/zips/{part}{year}.zip")
    if not karpathy:
        addresses.append(f"{base}/annotations/annotations_trainval{year}.zip")
    elif mirror:
        addresses.append(f"{base}/{PurePosixPath(KARPATHY).name}")
    else:
        addresses.append(KARPATHY)
    return addresses


def fetch(address: str, folder: str | Path, progress: Progress = lambda there, total: None) -> Path:
    """Fetch one file into `folder`, continuing a partial one. OSError, one line, if it cannot be had whole."""
    path = Path(folder) / PurePosixPath(address).name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    trouble: object = None
    for attempt in range(ATTEMPTS):
        try:
            _continue(address, part, progress)
            return part.rename(path)
        except urllib.error.HTTPError as error:
            if _is_whole(part, error):
                return part.rename(path)
            if not _may_pass(error.code):
                raise MissingError(f"cannot download {address}: {error}") from error
            trouble = error
        except (OSError, HTTPException) as error:
            trouble = getattr(error, "reason", error)
        if attempt + 1 < ATTEMPTS:
            logger.warning("%s broke off (%s); going on from byte %d", address, trouble, _size(part))
            time.sleep(min(2**attempt / 4, 10))
    raise MissingError(f"cannot download {address}: {trouble}; run again to go on from byte {_size(part)}")


def unpack(archive: Path, folder: str | Path) -> int:
    """Extract a zip below `folder`; files already there in full size are kept. Returns how many were written.

    ValueError names an archive that is broken or whose members would leave the folder.
    """
    written = 0
    try:
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                written += _extract(file, member, Path(folder))
    except zipfile.BadZipFile as error:
        raise UserError(f"archive {archive} is broken ({error}); delete it and download it again") from error
    return written


def _parts(splits: Sequence[str], year: str) -> set[str]:
    """Which of the official parts, train and val, these splits are made of: all but `train` lie in val."""
    parts = set()
    for split in splits:
        for name in split.split("+"):
            parts.add("train" if name.removesuffix(year) == "train" else "val")
    return parts


def _may_pass(code: int) -> bool:
    """Whether another attempt may succeed: the server is in trouble, or what was there of the file is of no use."""
    return code >= 500 or code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def _is_whole(part: Path, error: urllib.error.HTTPError) -> bool:
    """Whether the server has nothing after what is there because that is the whole file.

    A part that another file has meanwhile taken the place of is deleted.
    """
    if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return False
    there = _size(part)
    if error.headers["Content-Range"] == f"bytes */{there}":
        return True
    part.unlink()
    return False


def _continue(address: str, part: Path, progress: Progress) -> None:
    """Fetch what is missing of a file. Raises OSError if the connection ends before it is whole."""
    tag_file = part.with_name(part.name + ".tag")
    request = _request(address, part, tag_file)
    with urllib.request.urlopen(request, timeout=60) as answer:
        headers = answer.headers
        there = _size(part) if answer.status == HTTPStatus.PARTIAL_CONTENT else 0
        total = there + int(headers["Content-Length"] or 0)
        tag_file.write_text(headers["ETag"] or headers["Last-Modified"] or "")
        mode = "ab" if there else "wb"
        with part.open(mode) as file:
            while data := answer.read(CHUNK):
                file.write(data)
                there += len(data)
                progress(there, total)
    if there != total:
        raise OSError(f"got {there} of {total} bytes")
    tag_file.unlink(missing_ok=True)


def _request(address: str, part: Path, tag_file: Path) -> urllib.request.Request:
    request = urllib.request.Request(address)
    size = _size(part)
    if not size:
        return request
    request.add_header("Range", f"bytes={size}-")
    tag = tag_file.read_text() if tag_file.is_file() else ""
    if tag:
        # Should the file have changed since, the server then sends the whole new one instead of a wrong rest.
        request.add_header("If-Range", tag)
    return request


def _extract(file: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> bool:
    """Write one member, unless it is there in full size. Raises ValueError for a name that leaves the folder."""
    name = member.filename
    if leaves_folder(name):
        raise UserError(f"archive {file.filename} holds {name!r}, which would leave {folder}")
    target = folder / name
    if member.is_dir() or _size(target) == member.file_size:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with file.open(member) as source, part.open("wb") as destination:
        shutil.copyfileobj(source, destination, CHUNK)
    part.replace(target)
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
