"""The server under load from another process, beside LitServe's own loop.

    python scripts/bench_serve.py
    python scripts/bench_serve.py --run runs/default --seconds 10 --clients '[128]' --json rows.json

A closed loop of clients on the same cores: each sends its next request when its last is answered. The first model does
nothing for 4 ms, in batches of 16 at most, with a wait of 5 ms at most; every answer is checked to be its request's.
With a run, its own models are served too, beside the throughput of full batches that nobody has to ask for.
"""

from mm.bench.serving import ServingBench, bench_serving
from mm.cli import run_command

if __name__ == "__main__":
    run_command(ServingBench, bench_serving)
