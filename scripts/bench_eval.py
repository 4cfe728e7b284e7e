"""Evaluation measured against clip-benchmark and eccv_caption on the same embeddings, in one process, interleaved.

    python scripts/bench_eval.py --json eval/results/eval_cpu.json

How each implementation is run is said in mm/bench/eval.py.
"""

from rich.console import Console

from mm.bench.eval import EvalBenchmark, bench_eval, benchmark_table
from mm.cli import run_command
from mm.files import write_json


def main(config: EvalBenchmark) -> None:
    result = bench_eval(config)
    Console().print(benchmark_table(result), result["largest_difference_percent"], result["real_embeddings"])
    if config.json:
        write_json(config.json, result)


if __name__ == "__main__":
    run_command(EvalBenchmark, main)
