#!/usr/bin/env bash
# torch 2.11.0: on CPUs, silu of one half of narrow bfloat16 rows, as a gated MLP asks for it, is slower than a copy and silu.
#
# Expected: `gate, up = x.chunk(2, -1)` and `silu(gate)` cost about what silu of a tensor of that size costs: rows that lie
# apart are read in order, and in float32 they cost a third more.
# Seen, one thread, AVX512, 262,144 values: halves that are 16, 32 or 48 wide take 1.0 ms where their copies take 0.14; 96 wide
# 0.5; 64, 128 and wider 0.16. In float32 32 wide takes 0.17. The vectorised loop takes 64 bfloat16 values of a row at a time,
# and what is left of each row is converted one by one. Experts are often that narrow, with joined gate and up projections;
# a profile shows silu, not the layout. A copy first, or a width of a multiple of 64, avoids it. The factor that is held
# here, of 32 wide, is 3.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import statistics
import time

import torch
from torch.nn.functional import silu

torch.set_num_threads(1)
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())


def milliseconds(x, repeats=21):
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        silu(x)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


torch.manual_seed(0)
ratio = {}
for dtype in (torch.float32, torch.bfloat16):
    half, _ = torch.randn(64, 128, 64).to(dtype).chunk(2, -1)
    apart, copied = milliseconds(half), milliseconds(half.contiguous())
    ratio[dtype] = apart / copied
    print(f"{dtype}, 32 wide: half {apart:.2f} ms, its copy {copied:.2f} ms, {ratio[dtype]:.1f} times")
assert ratio[torch.bfloat16] > 3 > ratio[torch.float32]
PY
"$here/venv/bin/python" "$here/case.py"
