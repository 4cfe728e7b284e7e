#!/usr/bin/env bash
# bitsandbytes 0.50.2: on CPUs, unpacking an odd number of four-bit values compiles a function, for each size anew.
#
# Expected: `dequantize_4bit` takes time by the number of values; an oddly shaped weight of 65 values is unpacked in
# microseconds, as one of 64 is, the first time as well.
# Seen: an odd number of values, or one that leaves a row odd, goes by another way, which is wrapped in torch.compile with
# static shapes: the first such weight of a process takes tens of seconds (a C++ compiler runs), each further size seconds, and
# the call after that 0.2 ms. Sizes of whole blocks never do. A model with a few odd layers starts a minute later, a suite of
# tests is slow for no visible reason, and without a compiler it goes on at eager speed without a word. Whoever packs weights
# pads them to whole blocks and cuts them behind.
# What is held here: the first unpacking of 65 values takes more than 50 times as long as the second, that of 512 does not
# compile. Needs a C++ compiler; without one the script says so and ends.
set -euo pipefail
command -v g++ > /dev/null || { echo "no C++ compiler here: nothing to see"; exit 0; }
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.11.0 numpy==2.4.6 bitsandbytes==0.50.2 setuptools==80.9.0
export TORCHINDUCTOR_CACHE_DIR="$here/cache" TRITON_CACHE_DIR="$here/triton"
cat > "$here/case.py" <<'PY'
import time

import bitsandbytes
import torch
from bitsandbytes import functional

print("bitsandbytes", bitsandbytes.__version__, "torch", torch.__version__)


def seconds(packed, state):
    started = time.perf_counter()
    functional.dequantize_4bit(packed, state)
    return time.perf_counter() - started


found = {}
for values in (512, 65, 129):
    packed, state = functional.quantize_4bit(torch.randn(1, values), blocksize=64, quant_type="nf4")
    found[values] = [seconds(packed, state) for _ in range(2)]
    print(f"{values} values: first {found[values][0]:.4f} s, then {found[values][1]:.4f} s")
assert found[512][0] < 0.5
assert found[65][0] > 50 * found[65][1] and found[65][0] > 1
assert found[129][0] > 50 * found[129][1]
PY
"$here/venv/bin/python" "$here/case.py"
