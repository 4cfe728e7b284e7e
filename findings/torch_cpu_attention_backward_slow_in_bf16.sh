#!/usr/bin/env bash
# torch 2.11.0: on CPUs that multiply bfloat16, the backward of attention is many times slower in bfloat16 than in float32.
#
# Expected: on a processor with AVX512-bf16 or AMX, scaled_dot_product_attention under bf16 autocast trains faster than in
# float32, or the dispatcher leaves it to the unfused path where that is faster.
# Seen, one thread, (24, 4, 32, 32), forward and backward apart: the forward is as fast or faster in bfloat16; the fused
# backward, which is what the default takes, needs 42 ms where float32 needs 1.3 and the unfused bfloat16 path 5. Each
# sample's head costs about 0.4 ms whatever its length (32 to 64 tokens) and width (16 to 128), so that short sequences of
# many samples, as captions are, suffer most: 7 times at 64 tokens, none at 1,024. No warning, and a profile of the
# forward alone shows nothing. Whoever trains short sequences on such a CPU takes attention out of autocast.
# The factor that is held here is 3, in favour of float32 and of the unfused path; on a processor without bfloat16
# products the script says so and ends.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

torch.set_num_threads(1)
print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability(), "AMX", torch.cpu._is_amx_tile_supported())
if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    raise SystemExit("this processor does not multiply bfloat16: nothing to see here")


def milliseconds(call, repeats=9):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def passes(dtype, tokens, backends):
    torch.manual_seed(0)
    leaves = [torch.randn(24, 4, tokens, 32, dtype=dtype, requires_grad=True) for _ in range(3)]
    with sdpa_kernel(backends):
        output = scaled_dot_product_attention(*leaves)
        gradient = torch.ones_like(output)
        forward = milliseconds(lambda: scaled_dot_product_attention(*leaves))
    backward = milliseconds(lambda: torch.autograd.grad(output, leaves, gradient, retain_graph=True))
    return forward, backward


every = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
for tokens in (32, 64):
    single = passes(torch.float32, tokens, every)
    fused = passes(torch.bfloat16, tokens, every)
    unfused = passes(torch.bfloat16, tokens, [SDPBackend.MATH])
    print(f"{tokens} tokens, forward and backward in ms: float32 {single[0]:.1f}, {single[1]:.1f};", end=" ")
    print(f"bfloat16 fused {fused[0]:.1f}, {fused[1]:.1f}; bfloat16 unfused {unfused[0]:.1f}, {unfused[1]:.1f}")
    if tokens == 32:
        assert fused[1] > 3 * single[1] and fused[1] > 3 * unfused[1]
PY
"$here/venv/bin/python" "$here/case.py"
