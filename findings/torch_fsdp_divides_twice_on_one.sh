#!/usr/bin/env bash
# torch 2.11.0: fully_shard over a mesh of one process divides gradients twice by a divide factor, where sums are forced.
#
# Expected: `set_gradient_divide_factor(f)` divides a gradient by f, once, whatever the mesh and whichever reduction is used.
# Seen: with `set_force_sum_reduction_for_comms(True)`, which gloo and MTIA need beside a factor, a module that is sharded
# over a mesh of one process gets its gradients divided by f². Experts that are divided over all data-parallel processes
# (ep = dp) are sharded so, over a mesh of one, and need the factor ep: their gradients come out ep times too small, and
# with Adam the loss curve hides it. `foreach_reduce` divides on its way without a collective and once more behind it.
# What is held here: gradient 1 of one process with factor 4 is 0.25 without forced sums, and 0.0625 with them.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

print("torch", torch.__version__)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
found = {}
for forced in (False, True):
    layer = torch.nn.Linear(1, 1, bias=False)
    fully_shard(layer, mesh=mesh)
    layer.set_gradient_divide_factor(4.0)
    layer.set_force_sum_reduction_for_comms(forced)
    layer(torch.ones(1, 1)).sum().backward()
    found[forced] = layer.weight.grad.full_tensor().item()
    print(f"sums forced: {forced}, gradient {found[forced]}")
dist.destroy_process_group()
assert found == {False: 0.25, True: 0.0625}
PY
"$here/venv/bin/python" "$here/case.py" "$here"
