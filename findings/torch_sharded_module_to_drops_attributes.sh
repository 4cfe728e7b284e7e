#!/usr/bin/env bash
# torch 2.11.0: `module.to(...)`, even to where it is already, drops the attributes of parameters that fully_shard divided.
#
# Expected: a parameter stays what it was, as in any module that is not divided: `.to` gives it other data and leaves what
# was set on it, such as the mark `no_weight_decay` by which optimizers tell groups apart.
# Seen: the parameter is the same object before and after, and its attributes are gone, without a word. `.to("cpu")` of a
# module on the CPU does it too, which trainers call on their own (Lightning does when it sets a strategy up). What reads
# the mark with a default, as `getattr(parameter, "no_weight_decay", False)`, then decays everything. For tensor subclasses
# `Module._apply` swaps the whole tensor, its `__dict__` included, where for others it sets `.data`.
# What is held here: the attribute before and after `.to("cpu")`, of a plain module and of one sharded over one process.
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
found = {}
for sharded in (False, True):
    layer = torch.nn.Linear(4, 4)
    if sharded:
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    weight = layer.weight
    weight.no_weight_decay = True
    layer.to("cpu")
    assert layer.weight is weight
    found[sharded] = getattr(weight, "no_weight_decay", False)
    print(f"sharded: {sharded}, {type(weight.data).__name__}, no_weight_decay after .to('cpu'): {found[sharded]}")
dist.destroy_process_group()
assert found == {False: True, True: False}
PY
"$here/venv/bin/python" "$here/case.py" "$here"
