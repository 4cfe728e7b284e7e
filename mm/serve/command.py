"""`mm-align serve`: a finished run behind an address of this machine."""

import gc
import logging
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernels.errors import UserError
from mm.artifacts.interrupted import Interrupted
from mm.optional import require
from mm.serve.config import ServeConfig

if TYPE_CHECKING:
    from mm.infer.embedder import Embedder
    from mm.serve.engine import Engine
    from mm.serve.gallery import Gallery
    from mm.serve.inputs import InputReader

logger = logging.getLogger(__name__)
SWITCH = 0.0005
"""Seconds after which a thread that decodes lets the event loop on, which else waits 5 ms for each time it is due."""
GRACE = 30
"""Seconds in which requests that were accepted are answered after the server was told to stop."""


@dataclass(frozen=True)
class Served:
    """What is served.

    Args:
        build: of an engine, in the process that computes.
        reader: of inputs.
        kinds: that the engine computes.
        gallery: that is searched, if any.
    """

    build: "Callable[[], Engine]"
    reader: "InputReader"
    kinds: Sequence[str]
    gallery: "Gallery | None" = None


def serve(config: ServeConfig) -> None:
    """Serve a run until SIGTERM or Ctrl-C; what was accepted by then is answered.

    Raises:
        ValueError: the model, the index or the captions cannot be what was meant, or the port is taken.
    """
    require("litserve", "serve")
    run_server(served_run(config), config)


def served_run(config: ServeConfig) -> Served:
    """Read what is served: the run, to read inputs as it does, and the index."""
    import torch

    from mm.serve.engine import ServeRun, kinds_of, load_in_bits
    from mm.serve.inputs import InputReader

    torch.set_num_threads(1)  # of this process, which decodes: cores are for engines
    embedder = load_in_bits(config.model, "cpu", config.bits)
    if config.images is not None:
        bring_up_to_date(config, config.images)
    reader = InputReader(embedder.processor, config.limits)
    build = ServeRun(config.model, config.device, config.decoding, config.bits)
    return Served(build, reader, kinds_of(embedder), gallery_of(config, embedder, reader))


def bring_up_to_date(config: ServeConfig, images: Path) -> None:
    """Index a folder of images by the model that is served, of an index that is there only what changed."""
    from mm.infer.index import FILE, Index
    from mm.infer.search import index_images
    from mm.serve.engine import load_in_bits

    assert config.index is not None  # the settings have checked
    model = load_in_bits(config.model, config.device, config.bits)
    known = Index.load(config.index, model, config.device) if (config.index / FILE).is_file() else None
    index_images(config.index, images, model, known)


def gallery_of(config: ServeConfig, embedder: "Embedder", reader: "InputReader") -> "Gallery | None":
    """The images that can be searched; None without an index."""
    from mm.serve.gallery import Gallery, Identity, read_captions

    if config.index is None:
        return None
    captions = read_captions(config.captions) if config.captions is not None else {}
    return Gallery(config.index, Identity(embedder.name, embedder.digest), captions, reader)


def run_server(served: Served, config: ServeConfig) -> None:
    """Start engines and listen, until a signal."""
    import uvicorn
    from litserve.utils import wrap_litserve_start

    from mm.serve.connection import PatientProtocol
    from mm.serve.worker import Engines, Worker, threads_of

    listening = listen(config)
    with tempfile.TemporaryDirectory(prefix="mm-serve-") as folder:  # which only this user can open
        address = f"ipc://{folder}/engines"
        worker = Worker(served.build, address, config.batching.size, threads_of(config.workers))
        engines = Engines(
            worker,
            accelerator="cpu",  # where an engine computes is its own matter
            devices=1,
            workers_per_device=config.workers,
            timeout=False,
            restart_workers=True,
        )
        app = app_of(served, config, engines, address)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=partial(PatientProtocol, seconds=config.limits.seconds),
                ws="none",
                proxy_headers=False,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=GRACE,
            )
        )
        host, port = listening.getsockname()[:2]
        logger.info("serving %s at http://%s:%d", config.model, f"[{host}]" if ":" in host else host, port)
        with wrap_litserve_start(engines, worker_monitor=True):
            gc.collect()
            sys.setswitchinterval(SWITCH)
            gc.freeze()  # else every full collection looks at all of torch, and holds up every request for 0.2 s
            try:
                server.run(sockets=[listening])
            except (Interrupted, KeyboardInterrupt):
                # uvicorn raises the signal again when all is answered; nothing is left to be interrupted.
                logger.info("stopped: what was accepted is answered")
            finally:
                logging.getLogger("litserve").disabled = True  # its watch logs an error when engines end as they should
                logging.getLogger("litserve.server").disabled = True


def app_of(served: Served, config: ServeConfig, engines: Any, address: str) -> Any:
    """The application in front of the processes that LitServe started."""
    from mm.serve.app import build_app
    from mm.serve.dispatcher import Dispatcher
    from mm.serve.metrics import Metrics
    from mm.serve.service import Service

    def alive(number: int) -> bool:
        return any(process.pid == number and process.is_alive() for process in engines.inference_workers)

    dispatcher = Dispatcher(config.batching, Metrics(), alive, config.limits.waiting)
    service = Service(dispatcher, served.reader, served.kinds, config.batching.deadline, served.gallery)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        await dispatcher.start(address)
        yield
        await dispatcher.stop()

    return build_app(service, config, lifespan)


def listen(config: ServeConfig) -> socket.socket:
    """The socket that is listened on. Raises ValueError where the address is not this machine's, or taken."""
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"{config.host}:{config.port} cannot be listened on ({error}): choose another --port"
        ) from error
