#!/usr/bin/env bash
# torch 2.11.0: without a GPU, FakeTensorMode runs a forward on "cuda", but no backward, and hides host reads.
#
# Expected: FakeTensorMode computes shapes and devices without data and without the device, so that one training step on
# a pretended GPU shows, on any machine, tensors left on the CPU and reads by the host.
# Seen: the forward on device "cuda" works and refuses mixed devices; `backward()` ends in a RuntimeError about CUDA's
# primary context; `module.to("cuda")` of a module that was made on the CPU cannot swap its parameters. And with a
# ShapeEnv, which data-dependent shapes need, `.item()` gives a symbol and `.cpu()` passes, so that a host read goes by
# unseen. A check of device placement without a GPU needs another backend (torch's PrivateUse1 from Python takes one).
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

print("torch", torch.__version__)
if torch.cuda.is_available():
    raise SystemExit("this machine has a GPU: what is shown here is of machines without one")


def error(call):
    try:
        call()
    except RuntimeError as raised:
        return str(raised).splitlines()[0]
    return None


with FakeTensorMode(), torch.device("cuda"):
    layer = torch.nn.Linear(3, 4)
    output = layer(torch.randn(2, 3))
    print("forward:", tuple(output.shape), output.device)
    mixed = error(lambda: layer(torch.randn(2, 3, device="cpu")))
    print("a tensor left on the CPU:", mixed)
    backward = error(lambda: output.sum().backward())
    print("backward:", backward)
with FakeTensorMode():
    moved = error(lambda: torch.nn.Linear(3, 4).to("cuda"))
    print("module.to:", moved)
with FakeTensorMode(shape_env=ShapeEnv()):
    number = torch.randn((), device="cuda").item()
    print(".item():", type(number).__name__, "and .cpu():", torch.randn(2, device="cuda").cpu().device)
assert output.device.type == "cuda" and mixed is not None
assert backward is not None and "hasPrimaryContext" in backward
assert moved is not None and "swap" in moved
assert isinstance(number, torch.SymFloat)
PY
"$here/venv/bin/python" "$here/case.py"
