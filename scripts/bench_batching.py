"""Rules of batching on the same arrivals: this server's, its rivals', and an oracle that knows what comes.

    python scripts/bench_batching.py
    python scripts/bench_batching.py --traces '[bursty,daily]' --seeds 5 --json rows.json

One engine whose batches cost 10 µs a token with padding, 150 µs an item and 4 ms a batch; no rule is told. A request
of 4 to 24 tokens is due after three times what a full batch takes. Rivals are restated from their sources (Triton with
and without queue delay, mosec, Ray Serve, LitServe's loop, BentoML's dispatcher); each refuses what has waited longer
than that. The oracle is the best that first-in-first-out batches can do. Added delay is the time that a request waits
while the engine is idle.
"""

from mm.bench.batching import BatchingBench, bench_batching
from mm.cli import run_command

if __name__ == "__main__":
    run_command(BatchingBench, bench_batching)
