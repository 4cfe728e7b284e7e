"""A real server in a process of its own, of a tiny run and an index in which each image is what its caption says."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mm.artifacts.run import Run, save_run
from mm.batch import Batch
from mm.config import AlignConfig
from mm.infer.embedder import Embedder
from mm.infer.index import Index, images_in

TITLES = ("red circle", "two blue squares", "one small green heart", "stripes <b>&", "a circle above a dot")
PROGRAM = "from mm.commands import main\nif __name__ == '__main__':\n    main()\n"


@dataclass
class Server:
    """A server that runs.

    Args:
        process: its own, not its engines'.
        address: http://127.0.0.1:port.
        folder: of its run, images and index.
        log: file of what it says.
    """

    process: "subprocess.Popen[bytes]"
    address: str
    folder: Path
    log: Path

    def ask(self, path: str, body: bytes | dict[str, Any] | None = None, **headers: str) -> tuple[int, Any, Any]:
        """Status, body (JSON as what it is) and headers of an answer; a dict is sent as JSON."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers.setdefault("Content_Type", "application/json")
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.address + path, body, named)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return self._read(answer.status, answer)
        except urllib.error.HTTPError as error:
            return self._read(error.code, error)

    def _read(self, status: int, answer: Any) -> tuple[int, Any, Any]:
        content = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return status, json.loads(content) if is_json else content, answer.headers


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, Server]]:
    """Starting one takes seconds: the first test that needs it leaves it here."""
    started: dict[str, Server] = {}
    yield started
    for server in started.values():
        os.killpg(server.process.pid, signal.SIGTERM)  # all of its processes, as a service manager does
        assert server.process.wait(300) == 0, server.log.read_text()


@pytest.fixture
def server(
    servers: dict[str, Server],
    tiny: AlignConfig,
    tiny_run: Callable[..., Run],
    tiny_batch: Callable[..., Batch],
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    """A server of a tiny run that writes too."""
    pytest.importorskip("litserve", reason="serving needs the extra serve")
    if "server" not in servers:
        folder = tmp_path_factory.mktemp("served")
        run = tiny_run(model=replace(tiny.model, generate=True))
        run.model(tiny_batch())  # the codebooks have seen data
        save_run(run, folder / "run")
        index_of(run.eval(), folder)
        words = ["--index", "index", "--captions", "captions.json", "--port", "0", "--limits.megabytes", "1"]
        words += ["--limits.seconds", "1", "--decoding.max_tokens", "4", "--device", "cpu", "--batching.size", "8"]
        servers["server"] = started(folder, "run", *words)
    return servers["server"]


class Deployment(Server):
    """A server whose processes are Ray's."""

    def replicas(self, count: int) -> list[int]:
        """Processes of the replicas, the oldest first, when that many live which have spoken."""
        end = time.monotonic() + 180
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                answering = self.ask("/health")[0] == 200
                spoken = dict.fromkeys(map(int, re.findall(r"Replica pid=(\d+)", self.log.read_text())))
                living = [process for process in spoken if Path(f"/proc/{process}").is_dir()]
                if answering and len(living) == count:
                    return living
            time.sleep(0.3)
        raise AssertionError(self.log.read_text())


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path, Path], Deployment]]:
    """deployed(run, file) -> `serve run` of a deployment file of Ray Serve with that run, as the file says that it is
    begun, when both replicas answer."""
    begun: list[subprocess.Popen[bytes]] = []

    def deploy(run: Path, file: Path) -> Deployment:
        folder = tmp_path_factory.mktemp("deployed")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        content = yaml.safe_load(file.read_text())
        content["http_options"]["port"] = port
        (application,) = content["applications"]
        application["args"]["model"] = str(run)
        application["deployments"][0]["ray_actor_options"]["num_cpus"] = 0.1
        (folder / "ray.yaml").write_text(yaml.safe_dump(content))
        log = folder / "log.txt"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "RAY_DEDUP_LOGS": "0"}
        environment |= re.findall(r"export (\w+)=(\S+)", file.read_text())
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.serve.scripts", "run", "ray.yaml"],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        begun.append(process)
        deployment = Deployment(process, f"http://127.0.0.1:{port}", folder, log)
        deployment.replicas(2)
        return deployment

    yield deploy
    for process in begun:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def index_of(run: Run, folder: Path) -> None:
    """Images of one colour each, whose vectors are those of their captions, so that a text finds its image."""
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for number, _ in enumerate(TITLES):
        colour = random.integers(0, 256, 3, dtype=np.uint8)
        Image.fromarray(np.full((40, 90, 3), colour)).save(folder / "images" / f"{number}.png")
    embedder = Embedder(run, str(folder / "run"))
    files = list(images_in(folder / "images"))
    Index(embedder, folder / "images", files, embedder.encode_text(list(TITLES)), {}).save(folder / "index")
    images = [{"id": number, "file_name": f"{number}.png"} for number, _ in enumerate(TITLES)]
    captions = [{"image_id": number, "caption": title} for number, title in enumerate(TITLES)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))


def started(folder: Path, *words: str) -> Server:
    """`mm-align serve` with these words, when an engine is ready."""
    (folder / "serve.py").write_text(PROGRAM)
    log = folder / "log.txt"
    with log.open("wb") as output:
        command = [sys.executable, "serve.py", "serve", *words]
        root = str(Path(__file__).parents[3])
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        said = re.search(r"at (http://127\.0\.0\.1:\d+)", log.read_text())
        if said:
            server = Server(process, said[1], folder, log)
            with contextlib.suppress(OSError):
                if server.ask("/health")[0] == 200:
                    return server
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    raise AssertionError(log.read_text())
