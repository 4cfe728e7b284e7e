"""A model small enough for a test, and batches for it; a real browser, spoken to through two pipes: no driver, no port.

Triton's interpreter, which stands in for a GPU, must be asked for before anything imports Triton, and the
packages below do.
"""

import fcntl
import importlib
import json
import os
import select
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# How fast a busy machine draws examples says nothing of the code.
settings.register_profile("mm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mm")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Each core has a worker of its own, and what a test starts would wait for threads that have none.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("MM_ALL_EXTRAS"):  # make test-extras: a package that is missing fails the test instead of skipping it
    pytest.importorskip = lambda name, *_, **__: importlib.import_module(name)

from alignment import ScheduleConfig
from encoders import AudioConfig, ImageConfig, TextConfig
from encoders.quantizer import QuantizerConfig
from encoders.tokenizer import Tokenizer, observed_vocabulary
from encoders.vqvae import BottleneckConfig
from mm.artifacts.run import Run, build_run
from mm.batch import Batch
from mm.config import AlignConfig, EvalConfig, TrainConfig
from mm.data.config import DataConfig
from mm.model.backbone import BackboneConfig
from mm.model.moe import MoEConfig
from mm.model.multimodal import ModelConfig
from mm.train.task import AlignTask

torch.set_num_threads(1)

LONGEST = ("test_two_ranks.py", "test_device.py")
"""Files that begin first: at the end they would leave the other workers without anything to do."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-pipe",
]
PATIENCE = 60  # seconds

CAPTIONS = ("red circle", "two blue squares left of a star", "one small green heart", "stripes", "a circle above a dot")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A benchmark sets other numbers; a process that is forked from one with more threads waits for them for ever."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> AlignConfig:
    """All three modalities from scratch: width 32, 2 layers, 8 experts of which 2 are active."""
    bottleneck = BottleneckConfig(quantizer=QuantizerConfig(num_codes=16, width=8), reconstruct=2)
    backbone = BackboneConfig(width=32, layers=2, heads=2, moe=MoEConfig(num_experts=8, top_k=2, hidden=8, shared=16))
    return AlignConfig(
        data=DataConfig(),
        model=ModelConfig(embedding=16, token_embedding=8, direct=False, backbone=backbone),
        image=ImageConfig(size=32, width=16, depth=1),
        audio=AudioConfig(seconds=0.32, width=16, depth=1),
        text=TextConfig(width=16, depth=1, heads=2, max_tokens=12),
        bottleneck=bottleneck,
        schedule=ScheduleConfig(kind="progressive"),
        train=TrainConfig(steps=10, batch_size=8, precision="fp32", accelerator="cpu"),
        eval=EvalConfig(batch_size=8, rerank=2),
    )


@pytest.fixture
def vocabulary() -> torch.Tensor:
    return observed_vocabulary(Tokenizer("scratch", 12), CAPTIONS)


@pytest.fixture
def tiny_run(tiny: AlignConfig, vocabulary: torch.Tensor) -> Callable[..., Run]:
    """tiny_run(**changes of the config) -> Run, the same weights every time."""

    def build(**changes: object) -> Run:
        torch.manual_seed(0)
        return build_run(replace(tiny, **changes), vocabulary)  # type: ignore[arg-type]

    return build


@pytest.fixture
def tiny_task(tiny_run: Callable[..., Run]) -> Callable[..., AlignTask]:
    """tiny_task(**changes of the config) -> AlignTask of `tiny_run`."""
    return lambda **changes: AlignTask(tiny_run(**changes))


@pytest.fixture
def tiny_batch(tiny: AlignConfig) -> Callable[..., Batch]:
    """tiny_batch(rows=4, seed=0) -> a Batch of noise images, noise audio clips of growing length, and captions."""

    def make(rows: int = 4, seed: int = 0) -> Batch:
        random = torch.Generator().manual_seed(seed)
        samples = int(tiny.audio.seconds * tiny.audio.sample_rate)
        ids, mask = Tokenizer("scratch", tiny.text.max_tokens)([CAPTIONS[i % len(CAPTIONS)] for i in range(rows)])
        lengths = torch.linspace(samples // 2, samples, rows).long()
        real = torch.arange(samples) < lengths[:, None]
        batch = Batch(torch.arange(rows))
        batch.put("image", torch.randint(0, 256, (rows, 3, 32, 32), dtype=torch.uint8, generator=random))
        batch.put("audio", torch.randn(rows, samples, generator=random).mul(0.1) * real, real)
        batch.put("text", ids, mask)
        return batch

    return make


class Browser:
    """A tab of headless Chromium.

    Args:
        profile: an empty folder of its own.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None  # the fixture
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Chromium reads commands from 3 and answers on 4; the copies lie clear of both.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, theirs[0], 3), (os.POSIX_SPAWN_DUP2, theirs[1], 4)]
        actions += [(os.POSIX_SPAWN_OPEN, output, os.devnull, os.O_WRONLY, 0) for output in (1, 2)]
        command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "about:blank"]
        self.process = os.posix_spawn(CHROMIUM, command, os.environ, file_actions=actions)
        for end in theirs:
            os.close(end)
        os.close(theirs_in)
        os.close(theirs_out)
        self.out = os.fdopen(ours_out, "wb", buffering=0)
        self.into = os.fdopen(ours_in, "rb", buffering=0)
        self.rest = b""
        self.sent = 0
        self.session: dict[str, str] = {}
        pages = [each for each in self.ask("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.ask("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters, **self.session}
        self.out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.into], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            piece = self.into.read(1 << 16)
            assert piece, "the browser ended"
            self.rest += piece
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def look(self, page: Path | str, script: str, width: int, scheme: str) -> Any:
        """What a script finds in a page of this width, in a light or dark scheme.

        Args:
            page: a file, or an address.
            script: an expression, perhaps a promise, of what JSON holds.
            width: in pixels.
            scheme: `light` or `dark`.
        """
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        loaded = "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))"
        return self.evaluate(f"{loaded}.then(() => ({script}))")

    def evaluate(self, expression: str) -> Any:
        """What an expression, perhaps a promise, is in the page that is shown."""
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"]["value"]

    def close(self) -> None:
        """End the browser, and wait for its end."""
        self.session = {}
        self.ask("Browser.close")
        self.out.close()
        self.into.close()
        os.waitpid(self.process, 0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser with an empty profile; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
