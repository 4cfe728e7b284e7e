"""A real browser, spoken to through two pipes: no driver, no port."""

import fcntl
import json
import os
import select
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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

    def look(self, page: Path, script: str, width: int, scheme: str) -> Any:
        """What a script finds in a page of this width, in a light or dark scheme.

        Args:
            page: a file.
            script: an expression, perhaps a promise, of what JSON holds.
            width: in pixels.
            scheme: `light` or `dark`.
        """
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.ask("Page.navigate", url=page.as_uri())
        loaded = "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))"
        expression = f"{loaded}.then(() => ({script}))"
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
