#!/usr/bin/env bash
# executorch 1.2.0: lowered to XNNPACK, nn.Sequential(conv, batch norm) fails, and the same layers inside another module do not.
#
# Expected: a convolution and a batch norm in eval mode, the commonest pair there is, lower whatever holds them: torch.export takes both,
# and without XNNPACK's partitioner both become programs.
# Seen: the passes that fold a batch norm make a new weight named after the old one, "0_weight_fused_bn". Where the layer is the first
# child of the exported module itself, its name begins with a digit, torch.fx puts an underscore before it, and the pass then looks for the
# name that it had meant: ValueError. The same for a batch norm on its own. Held by any other module ("m_0_weight...") all is well. Apart
# from names, a batch norm that reads another one's output fails as well (KeyError: the first one's replacement has no shape yet), with an
# activation between the two it does not.
# What is held here: which of these modules lower, and with which error the others end.
# The package wants pytest < 9, scikit-learn 1.7.1 and coremltools: --no-deps, and what an export really imports.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6 torchao==0.18.0 \
    flatbuffers==25.12.19 tabulate ruamel.yaml pyyaml packaging pandas
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps executorch==1.2.0
export PATH="$here/venv/bin:$PATH"
cat > "$here/case.py" <<'PY'
import logging
import warnings
from importlib.metadata import version

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from torch import nn

logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")
print("executorch", version("executorch"), "torch", torch.__version__)


class Held(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def conv():
    return nn.Conv2d(4, 4, 1)


def norm():
    return nn.BatchNorm2d(4)


def lowered(module, partitioner):
    exported = torch.export.export(module.eval(), (torch.zeros(1, 4, 8, 8),))
    try:
        to_edge_transform_and_lower(exported, partitioner=partitioner).to_executorch()
    except Exception as error:
        return type(error.__cause__ or error).__name__
    return "lowered"


CASES = {
    "Sequential(conv, norm)": (nn.Sequential(conv(), norm()), "ValueError"),
    "Sequential(norm)": (nn.Sequential(norm()), "ValueError"),
    "Sequential(conv, relu)": (nn.Sequential(conv(), nn.ReLU()), "lowered"),
    "held: conv, norm": (Held(conv(), norm()), "lowered"),
    "held: norm": (Held(norm()), "lowered"),
    "held: norm, norm": (Held(norm(), norm()), "KeyError"),
    "held: norm, relu, norm": (Held(norm(), nn.ReLU(), norm()), "lowered"),
}
for name, (module, expected) in CASES.items():
    plain, seen = lowered(module, []), lowered(module, [XnnpackPartitioner()])
    print(f"{name}: without a partitioner {plain}, to XNNPACK {seen}")
    assert (plain, seen) == ("lowered", expected), name
PY
"$here/venv/bin/python" "$here/case.py"
