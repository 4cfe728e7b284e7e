"""Tokens a second that a model writes: beside transformers' Qwen3-MoE, with a cache and without, and the limit.

    python scripts/bench_generation.py --json rows.json
    python scripts/bench_generation.py --width 1024 --layers 2 --hidden 256 --tokens 16 --lengths '[64]' --peer false

The limit of one sequence is reading the weights that a token touches, at the bandwidth with which this machine reads as
many bytes. Random weights, the likeliest token, float32, all interleaved in one process.
"""

from mm.bench.generation import GenerationConfig, bench_generation
from mm.cli import run_command

if __name__ == "__main__":
    run_command(GenerationConfig, bench_generation)
