"""An index of images: how long a search takes by its size, how fast one is built, and the limits of both.

    python scripts/bench_index.py
    python scripts/bench_index.py --sizes '[1000,100000]' --model runs/default --json rows.json

Random unit vectors are searched; the limit of one query is reading all of them once, in the same process, interleaved.
Generated JPEGs are indexed, by the default run without training unless --model names one; the limit is decoding and the
model one after the other on a CPU, the slower of them beside a GPU.
"""

from mm.bench.index import IndexConfig, bench_index
from mm.cli import run_command

if __name__ == "__main__":
    run_command(IndexConfig, bench_index)
