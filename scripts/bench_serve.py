"""The server under load from another process, beside LitServe's own loop.

    python scripts/bench_serve.py
    python scripts/bench_serve.py --run runs/default --seconds 10 --clients '[128]' --json rows.json
    python scripts/bench_serve.py --clients '[128]' --flame docs/img/serving-flame.svg
    python scripts/bench_serve.py --run runs/writes --soak 300 --json eval/results/serving_soak.json

A closed loop of clients on the same cores: each sends its next request when its last is answered. The first model does
nothing for 4 ms, in batches of 16 at most, with a wait of 5 ms at most; every answer is checked to be its request's.
With a run, its own models are served too, beside the throughput of full batches that nobody has to ask for. With
--soak, 128 clients ask that run for minutes: whether a request is lost or answered twice, and what stays in memory.
With --flame, py-spy looks at the server's stacks.
"""

from mm.bench.flame import flame
from mm.bench.serving import ServingBench, bench_serving
from mm.bench.serving_soak import soak
from mm.cli import run_command


def bench(config: ServingBench) -> None:
    """Load servers for seconds, or one for minutes."""
    if config.soak:
        soak(config)
    elif config.flame is not None:
        flame(config)
    else:
        bench_serving(config)


if __name__ == "__main__":
    run_command(ServingBench, bench)
