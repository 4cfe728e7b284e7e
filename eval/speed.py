"""What a step, a batch, a search and a set of COCO's size take on CPUs, as tables of Markdown."""

from collections.abc import Mapping
from typing import Any

from eval.tables import markdown, measured_on

Result = Mapping[str, Any]
GIBIBYTE = 2**30


def steps_table(results: Mapping[str, Result]) -> str:
    """Training steps of scripts/bench_step.py beside open_clip's, by the name of their file."""
    rows = []
    for name, result in results.items():
        ours, *peers = result["rows"]
        times = [f"{row['implementation']} {row['milliseconds']:.0f} ms" for row in peers]
        ratios = [f"{ours['milliseconds'] / row['milliseconds']:.1f} ×" for row in peers]
        rows.append(
            (
                f"{name.removeprefix('step_').replace('_', ' ')} ({ours['case']}): {', '.join(result['modalities'])}",
                f"{ours['milliseconds']:.0f} ms, {ours['peak_bytes'] / 1e6:.0f} MB",
                "; ".join(times) or "—",
                "; ".join(ratios) or "—",
                f"{100 * result['outside_arithmetic']:.0f} %",
                f"{ours['device']}, {ours['threads']} threads, {ours['date']}",
            )
        )
    heads = ("training step", "ours", "beside", "as long as that", "outside products and convolutions", "measured on")
    return f"{markdown(heads, rows)}\n\nBy `python scripts/bench_step.py --config …`."


def feeding_table(result: Result) -> str:
    """Images a second into a training step, and the share of what the processor's cores could decode and resize."""
    rows = []
    for row in result["rows"]:
        share = row["images_per_second"] / result["limit_images_per_second"]
        rows.append((row["what"], str(row["processes"]), f"{row['images_per_second']:,.0f}", f"{100 * share:.0f} %"))
    heads = ("what", "processes", "images/s", "of decoding and resizing on all cores")
    return f"{markdown(heads, rows)}\n\n{measured_on([result])}. By `python scripts/bench_feeding.py --image.size 224`."


def index_table(result: Result) -> str:
    """Searches by size of the index beside reading it once, and how fast one is built."""
    rows = []
    for row in result["search"]:
        rows.append(
            (
                f"{row['vectors']:,}",
                str(row["queries"]),
                f"{row['milliseconds']:.2f} ms",
                f"{row['limit_milliseconds']:.2f} ms",
            )
        )
    built = result["build"]
    rates = built["images_a_second"]
    said = (
        f"Built by {built['model']}: {rates['build']:,.0f} images/s of {built['side']} pixels, {rates['again']:,.0f} of"
        f" those that the index has; decoding, then the model, would give {rates['limit']:,.0f}."
    )
    where = f"{result['device']}, {result['threads']} threads, torch {result['torch']}, {result['date']}"
    heads = ("vectors", "queries at once", "search", "reading them once")
    return f"{markdown(heads, rows)}\n\n{said} Measured on: {where}. By `python scripts/bench_index.py`."


def scale_table(result: Result) -> str:
    """A set of COCO's size: seconds until a run's first step and until it goes on, and memory."""
    rows = []
    for row in result["rows"]:
        rows.append(
            (
                f"{row['layout']}, {row['images']:,} images",
                f"{row['seconds_to_first_step']:.0f} s",
                f"{row['seconds_to_resume']:.0f} s",
                f"{row['memory_bytes'] / GIBIBYTE:.2f} GiB",
            )
        )
    found = result["evaluation"]
    said = (
        f"{found['images']:,} images and {found['captions']:,} captions are evaluated in {found['seconds']:.0f} s, from"
        f" command to end, and in {found['seconds_again']:.0f} s once their embeddings are kept."
    )
    heads = ("set", "command to first step", "resume to next step", "memory of all processes")
    return f"{markdown(heads, rows)}\n\n{said} {measured_on([result])}. By `python scripts/bench_scale.py`."


def generation_table(result: Result) -> str:
    """Tokens a second by who writes them, and how long one more token takes with a cache and without."""
    rows = []
    for row in result["batches"]:
        ours = row["tokens_a_second"]["ours"]
        others = [f"{name} {rate:,.0f} ({ours / rate:.1f} ×)" for name, rate in row["tokens_a_second"].items()]
        rows.append((str(row["sequences"]), f"{ours:,.0f}", "; ".join(others[1:]) or "—"))
    lengths = [[f"{row['kept']:.1f} ms, {row['anew']:.1f} ms" for row in result["lengths"]]]
    names = [f"of {row['length']:,}" for row in result["lengths"]]
    limit = 1e9 * result["gigabytes_a_second"] / result["touched_bytes_of_a_token"]
    where = f"{result['device']}, {result['threads']} threads, torch {result['torch']}, {result['date']}"
    beside = "others (ours is so many times as fast)"
    said = (
        f"{result['parameters'] / 1e6:.1f} M parameters. Reading the weights that a token of one sequence touches would"
        f" allow {limit:,.0f} tokens/s. One more token, with what is before it kept, and read anew:"
    )
    tokens = markdown(("sequences", "ours, tokens/s", beside), rows)
    return f"{tokens}\n\n{said}\n\n{markdown(names, lengths)}\n\nMeasured on: {where}."
