#!/usr/bin/env bash
# torch 2.11.0: ParameterDict sorts the dict it is given; ModuleDict does not, nor does adding entries one by one.
#
# Expected: `ParameterDict({"text": a, "audio": b})` holds its parameters in the order of the dict, as ModuleDict does
# and as dicts have done since Python 3.7; so filling it in a loop is the same.
# Seen: the constructor and `update` sort a plain dict by key (an OrderedDict keeps its order), assignment does not. The
# two ways of writing one module give `parameters()` in different orders. Names in state dicts agree, but an
# optimizer's state is kept by position: parameters of one shape then take each other's moments, without a word.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0
cat > "$here/case.py" <<'PY'
from collections import OrderedDict

import torch
from torch.nn import Linear, ModuleDict, Parameter, ParameterDict

NAMES = ("text", "audio")


def values():
    return {name: Parameter(torch.zeros(2)) for name in NAMES}


def stepped(parameters):
    """An optimizer that has seen a gradient of 1 for text and of 2 for audio."""
    optimizer = torch.optim.Adam(parameters.values())
    for size, name in enumerate(NAMES, start=1):
        parameters[name].grad = torch.full((2,), float(size))
    optimizer.step()
    return optimizer


at_once = ParameterDict(values())
ordered = ParameterDict(OrderedDict(values()))
one_by_one = ParameterDict()
for name, value in values().items():
    one_by_one[name] = value
modules = ModuleDict({name: Linear(1, 1) for name in NAMES})
print("torch", torch.__version__)
print("a dict:", list(at_once), "OrderedDict:", list(ordered), "one by one:", list(one_by_one))
print("ModuleDict:", list(modules))
assert list(at_once) == ["audio", "text"]
assert list(ordered) == list(one_by_one) == list(modules) == ["text", "audio"]

restored = torch.optim.Adam(one_by_one.values())
restored.load_state_dict(stepped(at_once).state_dict())
moment = restored.state[one_by_one["text"]]["exp_avg"][0].item()
print("first moment of text after restoring:", round(moment, 3), "(its own was 0.1)")
assert abs(moment - 0.2) < 1e-6
PY
"$here/venv/bin/python" "$here/case.py"
