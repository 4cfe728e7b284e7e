"""Settings of a server."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.infer.decoding import Decoding
from mm.serve.batcher import Limits

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class BatchingConfig:
    """Which requests are computed together."""

    size: Annotated[int, "[1, inf)"] = 16
    """Items of a batch at most."""
    delay: Annotated[float, "[0, inf)"] = 10.0
    """Milliseconds that an item waits at most for others while an engine is idle."""
    forecast: bool = True
    """Forecast arrivals; without it an idle engine takes what waits at once."""
    deadline: Annotated[float, "(0, inf)"] = 10.0
    """Seconds in which a request is answered; one that cannot be any more is refused, not computed. Captions have ten
    times as long."""

    def __post_init__(self) -> None:
        check_ranges(self, "batching")

    @property
    def limits(self) -> Limits:
        """As the batcher takes them."""
        return Limits(self.size, self.delay / 1000)


@dataclass(frozen=True)
class RequestLimits:
    """What a request may be; more is refused."""

    megabytes: Annotated[float, "(0, inf)"] = 16.0
    """Of a body."""
    items: Annotated[int, "[1, inf)"] = 64
    """Inputs of a request."""
    megapixels: Annotated[float, "(0, inf)"] = 50.0
    """Of an image, read from its header before it is decoded."""
    minutes: Annotated[float, "(0, inf)"] = 10.0
    """Of a sound, read from its header before it is decoded."""
    characters: Annotated[int, "[1, inf)"] = 10_000
    """Of a text."""
    waiting: Annotated[int, "[1, inf)"] = 512
    """Inputs that may wait for an engine; further ones are answered 429."""
    seconds: Annotated[float, "(0, inf)"] = 30.0
    """In which a header must have come, and then its body."""

    def __post_init__(self) -> None:
        check_ranges(self, "limits")

    @property
    def bytes(self) -> int:
        """Of a body."""
        return int(self.megabytes * MEGABYTE)


@dataclass(frozen=True)
class ServeConfig:
    """A finished run behind an address."""

    model: str
    """Folder of the run, or hf://org/name[@revision]."""
    index: Path | None = None
    """Folder of the index of images that can be searched."""
    images: Path | None = None
    """Folder of images: the index is built, or brought up to date, before the server begins."""
    captions: Path | None = None
    """File of COCO's captions, of which each image that is found shows its first."""
    host: str = "127.0.0.1"
    """Address that is listened on; any but the loopback's needs a token."""
    port: Annotated[int, "[0, 65535]"] = 8000
    """That is listened on; 0 takes a free one, which is said."""
    token: str | None = None
    """What requests must bring as `Authorization: Bearer TOKEN`, and a browser once as /?token=TOKEN."""
    workers: Annotated[int, "[1, inf)"] = 1
    """Processes that compute, each with the run's weights."""
    bits: Literal[4, 8] | None = None
    """In which the run is computed, its weights rounded as `mm-align compress` rounds them; without it, in those in
    which it is stored."""
    device: str = "auto"
    """Of these: auto is the GPU where there is one; or a device as torch names it."""
    batching: BatchingConfig = BatchingConfig()
    limits: RequestLimits = RequestLimits()
    decoding: Decoding = field(default_factory=Decoding)
    """How captions are written."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not is_local(self.host) and not self.token:
            raise UserError(f"host={self.host} is open to others: give a --token that requests must bring")
        if self.images is not None and self.index is None:
            raise UserError("images are indexed into a folder: name it with --index DIR")


def is_local(host: str) -> bool:
    """Whether an address is reached by this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
