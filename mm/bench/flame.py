"""A flame graph of the server under load: py-spy's samples of its stacks, drawn as a small SVG without a script."""

import asyncio
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from kernels.errors import UserError
from mm.bench.load import closed_loop
from mm.bench.serving import ServingBench, numbered, serve_idle, served

Stack = tuple[str, ...]
"""Functions, the outermost first."""
WIDTH = 1200
"""Pixels of all samples."""
ROW = 17
NARROWEST = 0.004
"""Of all samples: a function with less is not drawn."""
CHARACTER = 6.2
"""Pixels of one."""
BEGIN = "Runner.run (asyncio"
"""The outermost function that is drawn: what is outside of it is how a process begins."""
COLOURS = {
    "(mm/": "#f4a261",
    "(fastapi/": "#8ecae6",
    "(starlette/": "#a8dadc",
    "(uvicorn/": "#b7d5a5",
    "(zmq/": "#d9b8e8",
}
"""Of functions by where they are; others are grey."""


def flame(config: ServingBench) -> None:
    """Load the server in front of the model that does nothing, and draw where its event loop spends its time.

    Raises:
        UserError: py-spy is not there, or may not look into the process.
    """
    assert config.flame is not None  # who calls has looked
    clients = max(config.clients)
    with tempfile.TemporaryDirectory() as folder, served(serve_idle) as serving:
        samples = Path(folder) / "stacks.txt"
        asyncio.run(closed_loop(serving.port, clients, 1.0, numbered("/embed", "vectors")))
        command = ["py-spy", "record", "--pid", str(serving.group), "--duration", str(round(config.seconds))]
        try:
            spy = subprocess.Popen(
                [*command, "--rate", "200", "--format", "raw", "--output", str(samples)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise UserError("py-spy is not installed: pip install py-spy") from error
        asyncio.run(closed_loop(serving.port, clients, config.seconds, numbered("/embed", "vectors")))
        _, said = spy.communicate(timeout=60)
        if spy.returncode or not samples.is_file():
            raise UserError(f"py-spy could not look into the server: {said.decode().strip().splitlines()[-1]}")
        config.flame.write_text(drawn(folded(samples.read_text())))


def folded(text: str) -> Counter[Stack]:
    """py-spy's raw output, a line `outer;…;inner count` for each stack -> how often each was seen, from `BEGIN` on; the
    lines of a function are one."""
    found = Counter[Stack]()
    for line in text.splitlines():
        names, _, count = line.rpartition(" ")
        stack = [re.sub(r":\d+\)$", ")", name) for name in names.split(";")]
        begins = [place for place, name in enumerate(stack) if name.startswith(BEGIN)]
        if begins:
            found[tuple(stack[begins[0] :])] += int(count)
    return found


def drawn(stacks: Mapping[Stack, int]) -> str:
    """An SVG: a row for each depth, as wide as the share of samples in which a function is on the stack."""
    total = sum(stacks.values())
    boxes = list(boxes_of(stacks, total))
    depth = max((row for row, _, _, _ in boxes), default=0) + 1
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {depth * ROW}" font-family="sans-serif"'
        ' font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for row, start, share, name in boxes:
        x, width, y = start * WIDTH, share * WIDTH, row * ROW
        colour = next((colour for part, colour in COLOURS.items() if part in name), "#dddddd")
        letters = int((width - 4) / CHARACTER)
        label = name if len(name) <= letters else name[: max(letters - 1, 0)] + "…"
        lines.append(f'<g><title>{escape(name)}: {100 * share:.1f} %</title><rect x="{x:.1f}" y="{y}"')
        lines.append(f' width="{width:.1f}" height="{ROW - 1}" fill="{colour}"/>')
        if letters > 3:
            lines.append(f'<text x="{x + 2:.1f}" y="{y + 12}">{escape(label)}</text>')
        lines.append("</g>\n")
    return "".join(lines) + "</svg>\n"


def boxes_of(stacks: Mapping[Stack, int], total: int) -> Iterator[tuple[int, float, float, str]]:
    """Row, start, share of all samples and name of each function that is drawn; of those with one caller, by name."""
    shares = Counter[Stack]()
    for stack, count in stacks.items():
        for depth in range(1, len(stack) + 1):
            shares[stack[:depth]] += count
    ends: dict[Stack, float] = {}
    for path in sorted(shares):
        start = ends.get(path[:-1], 0.0)
        share = shares[path] / total
        ends[path] = start  # where its first callee begins
        ends[path[:-1]] = start + share
        if share >= NARROWEST:
            yield len(path) - 1, start, share, path[-1]
