"""The official COCO archives: fetched with resuming, checked, unpacked.

Lin et al. 2014, arXiv:1405.0312; Karpathy & Fei-Fei 2015, arXiv:1412.2306 (the split file).
"""

import logging
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)
OFFICIAL = "http://images.cocodataset.org"
KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
ATTEMPTS = 5
CHUNK = 1 << 20

Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes there, bytes in all)."""


def archives(year: str, parts: Iterable[str], karpathy: bool, mirror: str | None) -> list[str]:
    """Addresses of what splits made of `parts` (train, val) need. A mirror keeps the official paths below its address;
    Karpathy's archive lies at its top."""
    base = (mirror or OFFICIAL).rstrip("/")
    addresses = [f"{base}/zips/{part}{year}.zip" for part in sorted(set(parts))]
    if karpathy:
        return [*addresses, f"{base}/{PurePosixPath(KARPATHY).name}" if mirror else KARPATHY]
    return [*addresses, f"{base}/annotations/annotations_trainval{year}.zip"]


def fetch(address: str, folder: str | Path, progress: Progress = lambda name, there, total: None) -> Path:
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
            if error.code == 416:  # nothing after what is there: it is whole, or the file is another by now
                if error.headers["Content-Range"] == f"bytes */{_size(part)}":
                    return part.rename(path)
                part.unlink()
            elif error.code < 500:
                raise OSError(f"cannot download {address}: {error}") from error
            trouble = error
        except (OSError, HTTPException) as error:
            trouble = getattr(error, "reason", error)
        if attempt + 1 < ATTEMPTS:
            logger.warning("%s broke off (%s); going on from byte %d", address, trouble, _size(part))
            time.sleep(min(2**attempt / 4, 10))
    raise OSError(f"cannot download {address}: {trouble}; run again to go on from byte {_size(part)}")


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
        raise ValueError(f"archive {archive} is broken ({error}); delete it and download it again") from error
    return written


def _continue(address: str, part: Path, progress: Progress) -> None:
    tag_file = part.with_name(part.name + ".tag")
    request = urllib.request.Request(address)
    if _size(part):
        request.add_header("Range", f"bytes={_size(part)}-")
        if tag_file.is_file() and (tag := tag_file.read_text()):
            # Should the file have changed since, the server then sends the whole new one instead of a wrong rest.
            request.add_header("If-Range", tag)
    with urllib.request.urlopen(request, timeout=60) as answer:
        there = _size(part) if answer.status == 206 else 0
        total = there + int(answer.headers["Content-Length"] or 0)
        tag_file.write_text(answer.headers["ETag"] or answer.headers["Last-Modified"] or "")
        with part.open("ab" if there else "wb") as file:
            while data := answer.read(CHUNK):
                file.write(data)
                there += len(data)
                progress(part.name.removesuffix(".part"), there, total)
    if there != total:
        raise OSError(f"got {there} of {total} bytes")
    tag_file.unlink(missing_ok=True)


def _extract(file: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> bool:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
        raise ValueError(f"archive {file.filename} holds {member.filename!r}, which would leave {folder}")
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
