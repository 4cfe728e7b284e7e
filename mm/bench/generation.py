"""How fast a run writes: tokens a second beside transformers' Qwen3-MoE of equal size, with and without a cache, and
what reading the weights that a token touches would allow.

Both start from random weights and take the likeliest token, so that all sequences run to the same length.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from encoders import TextConfig
from kernels.ranges import check_ranges
from kernels.timing import surroundings
from mm.artifacts.run import build_run
from mm.config import AlignConfig
from mm.files import write_json
from mm.infer.decoding import Decoding
from mm.infer.generation import Generation
from mm.model.backbone import BackboneConfig
from mm.model.causal import Whole
from mm.model.moe import MoEConfig
from mm.model.multimodal import ModelConfig
from mm.model.writer import Writer
from mm.optional import require

CPU = torch.device("cpu")
HEADS = 4
PROMPT = 8
"""Tokens of each prefix."""
NOTHING_STOPS = -1
"""The id of a stop token that is never written."""
PASSES = 5
"""Readings of a stretch of memory, of which the fastest is its bandwidth."""


@dataclass(frozen=True)
class GenerationConfig:
    """What writes how much."""

    width: Annotated[int, "[4, inf)"] = 128
    """D of a token, in ours and in the peer."""
    layers: Annotated[int, "[1, inf)"] = 4
    """Blocks."""
    hidden: Annotated[int, "[1, inf)"] = 32
    """H of an expert; there are 128, of which a token passes 8."""
    vocabulary: Annotated[int, "[2, 49408]"] = 8192
    """Tokens that may be written."""
    tokens: Annotated[int, "[1, inf)"] = 64
    """That are written behind each prefix."""
    batches: Annotated[tuple[int, ...], "[1, inf)"] = (1, 8)
    """Sequences that are written side by side."""
    lengths: Annotated[tuple[int, ...], "[9, inf)"] = (64, 128, 256, 512, 1024)
    """Of a sequence in the end, with and without a cache."""
    peer: bool = True
    """Time transformers' Qwen3-MoE as well, in each of its ways to compute experts."""
    repeats: Annotated[int, "[1, inf)"] = 5
    """Times that each is timed."""
    threads: Annotated[int, "[1, inf)"] = 2
    """Of torch."""
    json: Path | None = None
    """Where to write what was measured."""

    def __post_init__(self) -> None:
        check_ranges(self)


def bench_generation(config: GenerationConfig) -> dict[str, Any]:
    """Measure, print two tables, and write them to `config.json`."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    writer = random_writer(config)
    result: dict[str, Any] = surroundings(CPU)
    touched = touched_bytes(config)
    result |= {
        "parameters": writing_parameters(writer),
        "touched_bytes_of_a_token": touched,
        "gigabytes_a_second": round(bandwidth(touched) / 1e9, 2),
        "batches": [batch_rows(config, writer, batch) for batch in config.batches],
        "lengths": [length_row(config, writer, length) for length in config.lengths],
    }
    show(result)
    if config.json:
        write_json(config.json, result)
    return result


@torch.no_grad()
def random_writer(config: GenerationConfig) -> Writer:
    """A model that writes text alone, untrained."""
    moe = MoEConfig(hidden=config.hidden, shared=0)
    backbone = BackboneConfig(width=config.width, layers=config.layers, heads=HEADS, moe=moe)
    longest = max(*config.lengths, PROMPT + config.tokens) + 1
    text = TextConfig(width=config.width, depth=0, heads=HEADS, max_tokens=longest)
    model = ModelConfig(modalities=("image", "text"), generate=True, backbone=backbone)
    run = build_run(replace(AlignConfig(), model=model, text=text), torch.arange(config.vocabulary))
    return Writer(run.eval().model)


def writing_parameters(writer: Writer) -> int:
    """Those that writing text alone reads."""
    parts: list[nn.Module] = [writer.causal]
    for block in writer.blocks:
        parts += [block.self_norm, block.self_attention, block.moe_norm, block.moe]
    total = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return total + writer.encoder.trunk.embedding().numel()


def touched_bytes(config: GenerationConfig) -> int:
    """Of the float32 weights that a token of one sequence needs: attention, router and eight experts of each block, and
    the table of tokens, which it is compared with."""
    moe = MoEConfig()
    width = config.width
    block = 4 * width * width + moe.num_experts * width + moe.top_k * 3 * config.hidden * width
    return 4 * (config.layers * block + config.vocabulary * width)


def bandwidth(size: int, device: torch.device = CPU) -> float:
    """Bytes a second at which a device reads a stretch of memory of this size, again and again as weights are."""
    stretch = torch.ones(max(size // 4, 1), device=device)
    taken = []
    for _ in range(PASSES):
        start = time.perf_counter()
        float(stretch.sum())  # waits for the device
        taken.append(time.perf_counter() - start)
    return 4 * len(stretch) / min(taken)


def batch_rows(config: GenerationConfig, writer: Writer, batch: int) -> dict[str, Any]:
    """Tokens a second of so many sequences, by who writes them, interleaved."""
    prompts = torch.randint(1, config.vocabulary, (batch, PROMPT))
    written = batch * config.tokens
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: write(writer, prompts, config.tokens)}
    if config.peer:
        runs |= peers(config, prompts)
    rates = {name: round(written / seconds, 1) for name, seconds in timed(runs, config.repeats).items()}
    return {"sequences": batch, "tokens": config.tokens, "tokens_a_second": rates}


def write(writer: Writer, prompts: Tensor, tokens: int) -> None:
    """The likeliest `tokens` behind each prompt (B, P)."""
    Generation(writer, [NOTHING_STOPS], Decoding(tokens), slots=len(prompts))(prompts.tolist(), None)


def peers(config: GenerationConfig, prompts: Tensor) -> dict[str, Callable[[], Any]]:
    """transformers' Qwen3-MoE with its own cache, in every way that it computes experts."""
    transformers = require("transformers", "full")
    settings = transformers.Qwen3MoeConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=config.width // HEADS,
        intermediate_size=config.hidden,
        moe_intermediate_size=config.hidden,
        num_experts=MoEConfig().num_experts,
        num_experts_per_tok=MoEConfig().top_k,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.Qwen3MoeForCausalLM(settings).eval()
    mask = torch.ones_like(prompts)

    def run(way: str) -> Callable[[], Any]:
        def generate() -> None:
            model.set_experts_implementation(way)
            with torch.inference_mode():
                model.generate(prompts, attention_mask=mask, max_new_tokens=config.tokens, do_sample=False)

        return generate

    return {f"transformers, {way}": run(way) for way in ("eager", "batched_mm", "grouped_mm")}


def length_row(config: GenerationConfig, writer: Writer, length: int) -> dict[str, Any]:
    """Milliseconds of the last of `length` tokens of a sequence: with everything before it kept, and read again."""
    ids = torch.randint(1, config.vocabulary, (1, length))
    cache = writer.cache(1)
    with torch.inference_mode():
        read_new(writer, ids[:, :-1], cache.new([length - 1]))
    cache.lengths[0] = length - 1

    def kept() -> None:
        read_new(writer, ids[:, -1:], cache.new([1]))

    def anew() -> None:
        real = torch.ones_like(ids, dtype=torch.bool)
        with torch.inference_mode():
            out = writer.read(ids, None, Whole(real), torch.arange(length), None)
            writer.next_logits(out.x[:, -1])

    taken = timed({"kept": kept, "anew": anew}, config.repeats)
    return {"length": length} | {name: round(1e3 * seconds, 3) for name, seconds in taken.items()}


def timed(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds by name, interleaved, after a warm-up of each."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


@torch.inference_mode()
def read_new(writer: Writer, ids: Tensor, new: Any) -> Tensor:
    """The logits (B, V) behind the last of ids (B, T), which join what a cache holds; they are not counted as read."""
    out = writer.read(ids, None, new, new.at, None)
    return writer.next_logits(out.x[:, -1])


def show(result: dict[str, Any]) -> None:
    """Print tokens a second beside the limit, and milliseconds by length."""
    console = Console()
    limit = 1e9 * result["gigabytes_a_second"] / result["touched_bytes_of_a_token"]
    title = f"{result['parameters'] / 1e6:.1f} M parameters, {result['threads']} threads, {result['device']}"
    table = Table(title=title, title_justify="left")
    for column in ("sequences", "by", "tokens/s", "ours / this"):
        table.add_column(column, justify="left" if column == "by" else "right")
    for row in result["batches"]:
        ours = row["tokens_a_second"]["ours"]
        for name, rate in row["tokens_a_second"].items():
            table.add_row(str(row["sequences"]), name, f"{rate:,.1f}", f"{ours / rate:.2f}")
        if row["sequences"] == 1:
            table.add_row("1", "limit: touched weights read", f"{limit:,.1f}", f"{ours / limit:.2f}")
    console.print(table)
    lengths = Table(title="milliseconds of one more token", title_justify="left")
    for column in ("length", "kept", "read anew"):
        lengths.add_column(column, justify="right")
    for row in result["lengths"]:
        lengths.add_row(str(row["length"]), f"{row['kept']:.2f}", f"{row['anew']:.2f}")
    console.print(lengths)
