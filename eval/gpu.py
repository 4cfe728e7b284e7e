"""What scripts/gpu_check.py measured on a GPU, in lines that a table or a terminal shows."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Line = tuple[str, str]
"""What was measured, and what was found."""
OURS = "ours"
BOTH = "forward_backward"


def gpu_lines(result: Mapping[str, Any]) -> list[Line]:
    """A line for each thing that was measured; one with the error for each part that was not."""
    lines: list[Line] = []
    for part, found in result["parts"].items():
        lines += LINES[part](found)
        if found["state"] != "done":
            lines.append((part, f"{found['state']}: {found['error']}" if "error" in found else found["state"]))
    return lines


def described_gpu(result: Mapping[str, Any]) -> str:
    """Card, driver, versions and commit."""
    where = f"{result['card']}, torch {result['torch']}, driver {result['driver']}, Triton {result['triton']}"
    return f"{where}, {result['cores']} cores; {result['seconds']:.0f} s (commit {result['commit']})"


def _parity(found: Mapping[str, Any]) -> Iterator[Line]:
    if "passed" in found:
        said = f"{found['passed']} tests pass, {len(found['failed'])} fail, {found['skipped']} skipped"
        yield "kernels against their references", said


def _kernels(found: Mapping[str, Any]) -> Iterator[Line]:
    for rows in contests(found.get("rows", [])):
        first = rows[0]
        kind = "forward + backward" if first["pass"] == BOTH else "forward"
        yield f"{first['op']}, {first['case']}, {first['dtype']}, {kind}", beside(rows)


def _contests(found: Mapping[str, Any]) -> Iterator[Line]:
    for rows in contests(found.get("rows", [])):
        yield f"{rows[0]['op']}, {rows[0]['case']}", beside(rows)


def _memory(found: Mapping[str, Any]) -> Iterator[Line]:
    if "rows" in found:
        sizes = [f"{row['implementation']} {_bytes(row)}, {_time(row)}" for row in found["rows"]]
        yield f"memory of a step, {found['rows'][0]['case']}", "; ".join(sizes)


def _writing(found: Mapping[str, Any]) -> Iterator[Line]:
    if "tokens_a_second" in found:
        share = found["tokens_a_second"] / found["limit_tokens_a_second"]
        said = [
            f"{found['tokens_a_second']:,.0f} tokens/s, {100 * share:.0f} % of what reading weights and cache allows",
            f"a token {found['milliseconds']['p50']:.2f} ms (p99 {found['milliseconds']['p99']:.2f})",
        ]
        if "milliseconds_unfused" in found:
            said.append(f"with attention unfused {found['milliseconds_unfused']['p50']:.2f} ms")
        yield f"writing, {found['sequences']} sequences at once", "; ".join(said)


def _step(found: Mapping[str, Any]) -> Iterator[Line]:
    for batch, measured in found.get("batches", {}).items():
        if "rows" in measured:
            yield f"step, batch {batch}", beside(measured["rows"])
        if "launches" in measured:
            called = [
                f"{measured['launches']:,} launches",
                f"{measured['graph_launches']} of graphs",
                f"{measured['operations']:,} operations",
                f"busy {100 * measured['busy_share']:.0f} %",
            ]
            if "waits" in measured:
                called.insert(0, f"{measured['waits']} host waits")
            yield f"step, batch {batch}, calls", ", ".join(called)


def _evaluation(found: Mapping[str, Any]) -> Iterator[Line]:
    if "evaluator" in found:
        yield f"evaluator, {found['evaluator'][0]['case']}", beside(found["evaluator"])
    if "features" in found:
        features = found["features"]
        rates = [f"{row['implementation']} {row['milliseconds_an_image']:.2f} ms" for row in features["rows"]]
        limit = f"limit {features['limit_milliseconds_an_image']:.3f} ms"
        yield f"an image's features, {features['rows'][0]['case']}", ", ".join([*rates, limit])
    if "seconds_at_depth" in found:
        depths = [f"{depth}: {seconds:.1f} s" for depth, seconds in found["seconds_at_depth"].items()]
        yield "a split evaluated, by depth of re-ranking", ", ".join(depths)


def _run(found: Mapping[str, Any]) -> Iterator[Line]:
    if "seconds_by_phase" in found:
        phases = [f"{phase} {seconds:.1f}" for phase, seconds in found["seconds_by_phase"].items()]
        share = 100 * found["share_not_training"]
        said = f"{found['seconds']:.0f} s: {', '.join(phases)}; {share:.0f} % is not training"
        yield f"a run of {found['steps']} steps", said


LINES = {
    "parity": _parity,
    "kernels": _kernels,
    "sparse": _contests,
    "memory": _memory,
    "writing": _writing,
    "step": _step,
    "evaluation": _evaluation,
    "run": _run,
}
"""By part of the check."""


def contests(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Rows of one contest after another: those of one op, case, dtype and pass."""
    found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["op"], row["case"], row["dtype"], row["pass"])
        found.setdefault(key, []).append(row)
    return list(found.values())


def beside(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first one's time and memory, and how many times as long as each of the others it takes."""
    first = rows[0]
    said = [f"{first['implementation']} {_time(first)}, {_bytes(first)}"]
    for row in rows[1:]:
        ratio = first["milliseconds"] / max(row["milliseconds"], 1e-3)
        said.append(f"{row['implementation']} {_time(row)} ({ratio:.2f} ×)")
    return "; ".join(said)


def _time(row: Mapping[str, Any]) -> str:
    milliseconds = row["milliseconds"]
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2f} ms"


def _bytes(row: Mapping[str, Any]) -> str:
    return f"{row['peak_bytes'] / 1e6:,.0f} MB"
