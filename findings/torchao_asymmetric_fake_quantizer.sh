#!/usr/bin/env bash
# torchao 0.18.0: the fake quantiser of weights, told to be asymmetric, computes nonsense for every group that is not centred on zero.
#
# Expected: IntxFakeQuantizer with IntxFakeQuantizeConfig(torch.int4, group_size=..., is_symmetric=False) rounds to the nearest of
# sixteen steps between a group's smallest and largest value: no value moves by more than half a step.
# Seen: the scale is that, the zero point is not. It is made for a float domain (the middle of the range, as some int4 kernels have it),
# and then rounded to int32 and used as an integer, which is the default domain. Of values between 0.5 and 1.5 one is left; of values
# between -0.5 and 1.5 the largest are off by four steps. A group centred on zero is right, so that fresh weights of a linear layer show
# nothing. Nothing warns. Symmetric is right.
# What is held here: the largest error in steps, for groups in several places, symmetric and not.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6 torchao==0.18.0
cat > "$here/case.py" <<'PY'
from importlib.metadata import version

import torch
from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer

print("torchao", version("torchao"), "torch", torch.__version__)


def worst(low, high, symmetric):
    """The largest error in steps, and how many values are left of 64."""
    config = IntxFakeQuantizeConfig(torch.int4, group_size=64, is_symmetric=symmetric)
    quantizer = IntxFakeQuantizer(config)
    weight = torch.linspace(low, high, 64)[None]
    found = quantizer(weight)
    return float((found - weight).abs().max() / quantizer.scale), len(found.unique())


for low, high in ((-1.0, 1.0), (-0.5, 1.5), (0.5, 1.5)):
    for symmetric in (True, False):
        steps, left = worst(low, high, symmetric)
        name = "symmetric" if symmetric else "asymmetric"
        print(f"{low} to {high}, {name}: off by {steps:.2f} steps, {left} values left")
        right = symmetric or low == -high
        assert (steps < 0.51) is right
assert worst(0.5, 1.5, False)[1] == 1
PY
"$here/venv/bin/python" "$here/case.py"
