"""What can happen to files that hold others: a tar that has a member twice, a safetensors file whose offsets lie."""

import io
import json
import pickle
import random
import struct
import tarfile
import zipfile

import numpy as np

from eval.embeddings import REQUIRED
from mm.bench.damage import ANY, JSON, VALUES, Damage

Members = list[tuple[tarfile.TarInfo, bytes]]
"""The members of a tar, with their content."""


def repeated_member(draw: random.Random, data: bytes) -> bytes:
    """A tar that holds a member twice."""
    members = tar_members(data)
    return tar_of([*members, draw.choice(members)])


def renamed_member(draw: random.Random, data: bytes) -> bytes:
    """A tar one of whose members has another name."""
    members = tar_members(data)
    info, _ = draw.choice(members)
    info.name = draw.choice(("../out.jpg", "/root.jpg", "noextension", ".hidden", "other.jpg", "a/b/c.d.e", "__x__"))
    return tar_of(members)


def linked_member(draw: random.Random, data: bytes) -> bytes:
    """A tar one of whose members is a link."""
    members = tar_members(data)
    info, _ = draw.choice(members)
    info.type = draw.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE))
    info.linkname = "/etc/hostname"
    info.size = 0
    return tar_of(members)


def wrong_size(draw: random.Random, data: bytes) -> bytes:
    """A tar that states another size for a member, under a checksum that fits."""
    members = tar_members(data)
    info, _ = draw.choice(members)
    start = info.offset
    header = bytearray(data[start : start + 512])
    size = draw.choice((0, 1, info.size + 1, info.size + 512, 8**11 - 1))
    header[124:136] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]


def damaged_member(draw: random.Random, data: bytes) -> bytes:
    """A whole tar one of whose members is damaged."""
    members = tar_members(data)
    place = draw.randrange(len(members))
    info, content = members[place]
    kinds = JSON if info.name.endswith(".json") else ANY
    damaged = kinds[draw.choice(list(kinds))](draw, content)
    info.size = len(damaged)
    members[place] = (info, damaged)
    return tar_of(members)


def cut_between_members(draw: random.Random, data: bytes) -> bytes:
    """A tar without the members from one on, and without its end."""
    info, _ = draw.choice(tar_members(data))
    return data[: info.offset]


TAR: dict[str, Damage] = {
    **ANY,
    "member repeated": repeated_member,
    "member renamed": renamed_member,
    "member a link": linked_member,
    "wrong size": wrong_size,
    "member damaged": damaged_member,
    "cut between members": cut_between_members,
}
"""Of shards."""


def tar_members(data: bytes) -> Members:
    """The members of a tar, with their content."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            file = tar.extractfile(info)
            found.append((info, file.read() if file else b""))
    return found


def tar_of(members: Members) -> bytes:
    """A tar of members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def another_header(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header states another dtype, shape, place or name of a tensor, or nothing of it."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = draw.choice([name for name in header if name != "__metadata__"])
    stated = header[name]
    change = draw.choice(("dtype", "shape", "data_offsets", "name", "absent", "value"))
    if change == "dtype":
        stated["dtype"] = draw.choice(("F16", "I32", "F64", "X9", "BOOL"))
    elif change == "shape":
        stated["shape"] = draw.choice(([], [0], [-1], [2**62, 2], [1, *stated["shape"]], stated["shape"][::-1]))
    elif change == "data_offsets":
        begin, end = stated["data_offsets"]
        stated["data_offsets"] = draw.choice(([end, begin], [begin, end + 4], [0, 2**63], [begin], [begin + 4, end]))
    elif change == "value":
        header[name] = draw.choice(VALUES)
    else:
        del header[name]
    if change == "name":
        header[name + "x"] = stated
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data[8 + length :]


def header_length(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file that states another length of its header."""
    length = struct.unpack("<Q", data[:8])[0]
    stated = draw.choice((0, 1, length - 1, length + 8, len(data), 2**40, 2**63, 2**64 - 1))
    return struct.pack("<Q", stated) + data[8:]


def flipped_tensor_bits(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file some of whose numbers have another lowest byte."""
    length = struct.unpack("<Q", data[:8])[0]
    changed = bytearray(data)
    numbers = (len(data) - 8 - length) // 4
    for _ in range(draw.choice((1, 4, 64))):
        changed[8 + length + 4 * draw.randrange(numbers)] ^= draw.randrange(1, 256)
    return bytes(changed)


SAFETENSORS: dict[str, Damage] = {
    **ANY,
    "another header": another_header,
    "header length": header_length,
    "flipped tensor bits": flipped_tensor_bits,
}
"""Of weights."""


def missing_array(draw: random.Random, data: bytes) -> bytes:
    """Embeddings without one of the arrays that all have."""
    arrays = npz_arrays(data)
    del arrays[draw.choice(REQUIRED)]
    return npz_of(arrays)


def pickled_array(draw: random.Random, data: bytes) -> bytes:
    """An .npz file with an array of Python objects."""
    arrays = npz_arrays(data)
    name = draw.choice(list(arrays))
    arrays[name] = np.array([{"a": 1}] * len(arrays[name]), dtype=object)
    return npz_of(arrays)


def another_shape(draw: random.Random, data: bytes) -> bytes:
    """An .npz file with an array of another shape or dtype."""
    arrays = npz_arrays(data)
    name = draw.choice(list(arrays))
    array = arrays[name]
    changed = (array[:-1], array[..., None], array.ravel(), array[:0], array.astype(str), array.astype(np.complex64))
    arrays[name] = draw.choice(changed)
    return npz_of(arrays)


def impossible_numbers(draw: random.Random, data: bytes) -> bytes:
    """An .npz file with NaN, infinity, a vector of zeros, or ids that repeat."""
    arrays = npz_arrays(data)
    name = draw.choice(list(arrays))
    array = arrays[name].copy()
    if array.dtype.kind == "f":
        array[draw.randrange(len(array))] = draw.choice((np.nan, np.inf, 0.0))
    else:
        array[:] = draw.choice((array[0], -7))
    arrays[name] = array
    return npz_of(arrays)


NPZ: dict[str, Damage] = {
    **ANY,
    "missing array": missing_array,
    "pickled array": pickled_array,
    "another shape": another_shape,
    "impossible numbers": impossible_numbers,
}
"""Of embeddings."""


def npz_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name."""
    with np.load(io.BytesIO(data)) as file:
        return {name: file[name] for name in file.files}


def npz_of(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file of arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy types its keywords as bool
    return buffer.getvalue()


def missing_part(draw: random.Random, data: bytes) -> bytes:
    """A checkpoint without one of the parts of its zip file."""
    parts = zip_parts(data)
    del parts[draw.choice(list(parts))]
    return zip_of(parts)


def foreign_pickle(draw: random.Random, data: bytes) -> bytes:
    """A whole checkpoint that names a function, or holds something else than a state."""
    parts = zip_parts(data)
    (name,) = [part for part in parts if part.endswith("data.pkl")]
    parts[name] = pickle.dumps(draw.choice((print, [1, 2], {"a": 1}, None)), protocol=2)
    return zip_of(parts)


def another_zip(draw: random.Random, data: bytes) -> bytes:
    """A zip file that is no checkpoint."""
    return zip_of({"readme.txt": b"another archive"})


CHECKPOINT: dict[str, Damage] = {
    **ANY,
    "missing part": missing_part,
    "foreign pickle": foreign_pickle,
    "another zip": another_zip,
}
"""Of torch's zip files."""


def zip_parts(data: bytes) -> dict[str, bytes]:
    """The parts of a zip file by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zip_of(parts: dict[str, bytes]) -> bytes:
    """A zip file of parts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return buffer.getvalue()
