"""What was measured of serving: rules of batching by trace, and a server under load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from eval.plots import COLOURS, save_svg

Result = Mapping[str, Any]
OURS = "this server"
ADVERSARIAL = "adversarial"
CLOSE = 1.0
"""Points of goodput by which another rule may be ahead."""


def batching_rows(result: Result) -> list[list[str]]:
    """A row for each trace and rule: goodput by load, the worst added delay; latency and work at the middle load."""
    rows = []
    for trace, loads in result["traces"].items():
        middle = loads[list(loads)[len(loads) // 2]]
        for rule in middle:
            cells = [f"{at[rule]['goodput'][0]:.1f}" for at in loads.values()]
            if rule == "oracle":
                rows.append([trace, rule, *cells, "", "", ""])
                continue
            worst = max(at[rule]["delay_p99_worst"] for at in loads.values())
            latency, busy = middle[rule]["latency_mean"][0], middle[rule]["busy"][0]
            rows.append([trace, rule, *cells, f"{worst:.1f}", f"{latency:.1f}", f"{busy:.0f}"])
    return rows


def batching_columns(result: Result) -> list[str]:
    """Heads of `batching_rows`."""
    loads = list(next(iter(result["traces"].values())))
    middle = f"{100 * float(loads[len(loads) // 2]):.0f} %"
    heads = [f"{100 * float(load):.0f} %" for load in loads]
    return ["trace", "rule", *heads, "added delay p99, ms", f"latency at {middle}, ms", f"engine busy at {middle}, %"]


def worst_delay(result: Result) -> float:
    """Milliseconds: the largest p99 of the added delay of any trace, load and seed."""
    return max(at[OURS]["delay_p99_worst"] for loads in result["traces"].values() for at in loads.values())


def targets(result: Result) -> list[str]:
    """What was asked of the rule, and whether it holds, a sentence each."""
    behind = []
    shares = {}
    gains = []
    for trace, loads in result["traces"].items():
        shares[trace] = min(at[OURS]["of_oracle"][0] for at in loads.values())
        for load, at in loads.items():
            gains.append((at["forecast off"]["ours_less"], at["forecast off"]["busy"][0] - at[OURS]["busy"][0]))
            for rule, found in at.items():
                rival = rule not in (OURS, "oracle") and not rule.startswith("forecast")
                if rival and trace != ADVERSARIAL and found["ours_less"][0] < -CLOSE:
                    behind.append(f"{rule} on {trace} at {load} by {-found['ours_less'][0]:.1f}")
    near = [trace for trace, share in shares.items() if share >= 95]
    points = [mean for (mean, _), _ in gains]
    spared = [busy for _, busy in gains]
    return [
        f"Added delay, p99, worst of all traces, loads and seeds: {worst_delay(result):.1f} ms (asked: 15).",
        "Goodput is at most 1 point behind every rival's everywhere but on the adversarial trace."
        if not behind
        else f"Goodput is more than 1 point behind {'; '.join(behind)}.",
        "Of the oracle's goodput, at the worst load: "
        + ", ".join(f"{trace} {share:.1f} %" for trace, share in shares.items())
        + f"; at least 95 % on {len(near)} of {len(shares)} traces (asked: four of five).",
        f"The forecast itself adds {min(points):+.2f} to {max(points):+.2f} points of goodput, and the engine works"
        f" {min(spared):.1f} to {max(spared):.1f} points of its time less.",
    ]


def serving_rows(result: Result) -> list[list[str]]:
    """A row for each load of a server."""
    rows = []
    for row in result["rows"]:
        times = [f"{row[name]:.1f}" for name in ("p50", "p95", "p99")]
        # A bench that lost a request ended, before it counted them.
        unanswered = row["wrong"] + row.get("lost", 0) + row.get("twice", 0)
        lost = str(sum(row["other_statuses"].values()) + unanswered)
        rate = f"{row['requests_a_second']:,.0f}"
        of_full = f"{100 * row['of_full_batches']:.0f} %" if "of_full_batches" in row else ""
        rows.append([row["server"], row["model"], str(row["clients"]), rate, *times, lost, of_full])
    return rows


SERVING_COLUMNS = (
    "server",
    "model",
    "clients",
    "requests/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "lost or wrong",
    "of full batches",
)


def soak_rows(result: Result) -> list[list[str]]:
    """A row for each work of many clients for minutes."""
    rows = []
    for row in result["rows"]:
        times = [f"{row[name]:.0f}" for name in ("p50", "p95", "p99")]
        refused = sum(row["other_statuses"].values())
        wrong = row["lost"] + row["wrong"]
        twice = row["twice"] + abs(row["counted"] - row["answered"])
        memory = [f"{row['memory_start']:.0f}", f"{row['memory_end']:.0f}", f"{row['memory_a_minute']:+.1f}"]
        about = [row["model"], str(row["clients"]), f"{row['seconds']:.0f}", f"{row['answered']:,}"]
        rows.append([*about, f"{row['requests_a_second']:,.0f}", *times, str(refused), str(wrong), str(twice), *memory])
    return rows


SOAK_COLUMNS = (
    "model",
    "clients",
    "seconds",
    "answered",
    "requests/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "refused",
    "lost or wrong",
    "answered twice",
    "MB at the start",
    "MB at the end",
    "MB a minute, second half",
)


def said_of(result: Result) -> str:
    """Where server and clients ran, in a sentence."""
    cores = "one core" if result["cores"] == 1 else f"the same {result['cores']} cores"
    return f"Server, engine and clients on {cores}, commit {result['commit']}."


def draw_batching(result: Result, path: Path) -> None:
    """Goodput by load, a panel for each trace, a line for each rule; the same bytes of the same figures."""
    traces = result["traces"]
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(2.6 * len(traces), 2.8), layout="constrained")
        panels = figure.subplots(1, len(traces), squeeze=False)[0]
        for axes, (trace, loads) in zip(panels, traces.items(), strict=True):
            rules = [rule for rule in next(iter(loads.values())) if not rule.startswith("forecast")]
            percent = [100 * float(load) for load in loads]
            for number, rule in enumerate(rules):
                values = [at[rule]["goodput"][0] for at in loads.values()]
                style = {"oracle": ":", OURS: "-"}.get(rule, "--")
                axes.plot(percent, values, style, color=COLOURS[number % len(COLOURS)], label=rule, linewidth=1.4)
            axes.set(title=trace, xlabel="load, % of capacity", ylim=(0, 104))
        panels[0].set_ylabel("answered in time, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        save_svg(figure, path)
