"""How fast a device writes: many sequences at once, token by token, beside what reading weights and cache allows."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.timing import wait
from mm.bench.generation import PROMPT, GenerationConfig, bandwidth, random_writer, read_new, writing_parameters
from mm.model.cache import Cache
from mm.model.writer import Writer

SIZE = GenerationConfig(width=1024, layers=4, hidden=128, tokens=64, batches=(128,), lengths=(PROMPT + 64,))
"""Of the model, and how many sequences it writes at once: as many as the article speaks of."""
BYTES = 4
"""Of a weight and of what the cache keeps: float32."""


def writing(tiny: bool, device: torch.device) -> Iterator[dict[str, Any]]:
    """Tokens a second of all sequences, milliseconds a token, the limit of both, and what unfused attention takes.

    Args:
        tiny: whether a small model writes a little, to see that it does.
        device: which writes.
    """
    config = SIZE
    if tiny:
        config = replace(SIZE, width=16, layers=1, hidden=8, vocabulary=64, tokens=4, batches=(3,))
    (sequences,) = config.batches
    writer = random_writer(config)
    writer.model.to(device)
    prompts = torch.randint(1, config.vocabulary, (sequences, PROMPT), device=device)
    token_seconds(writer, prompts, 2)  # compiles its kernels
    yield {}
    seconds = token_seconds(writer, prompts, config.tokens)
    held = 2 * config.layers * sequences * config.width * (PROMPT + config.tokens // 2)
    read = BYTES * (writing_parameters(writer) + held)
    found = {
        "sequences": sequences,
        "parameters": writing_parameters(writer),
        "tokens_a_second": round(sequences * len(seconds) / float(seconds.sum()), 1),
        "milliseconds": percentiles(seconds),
        "bytes_of_a_step": read,
        "limit_tokens_a_second": round(sequences * bandwidth(read, device) / read, 1),
    }
    yield found
    with sdpa_kernel(SDPBackend.MATH):
        found["milliseconds_unfused"] = percentiles(token_seconds(writer, prompts, config.tokens))
    yield found


def percentiles(seconds: Tensor) -> dict[str, float]:
    """Of seconds (T,), in milliseconds."""
    return {f"p{share}": round(1e3 * float(seconds.quantile(share / 100)), 3) for share in (50, 99)}


@torch.inference_mode()
def token_seconds(writer: Writer, prompts: Tensor, tokens: int) -> Tensor:
    """What each of the likeliest tokens behind all prompts (B, P) takes, with a cache -> (tokens,) float64."""
    cache = writer.cache(len(prompts))
    last = following(writer, prompts, cache)
    wait(prompts.device)
    taken = []
    for _ in range(tokens):
        start = time.perf_counter()
        last = following(writer, last, cache)
        wait(prompts.device)
        taken.append(time.perf_counter() - start)
    return torch.tensor(taken, dtype=torch.float64)


def following(writer: Writer, ids: Tensor, cache: Cache) -> Tensor:
    """The likeliest token (B, 1) behind ids (B, T), which the cache keeps."""
    new = cache.new([ids.shape[1]] * len(ids))
    logits = read_new(writer, ids, new)
    new.keep()
    return logits.argmax(-1, keepdim=True)
