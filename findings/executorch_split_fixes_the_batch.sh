#!/usr/bin/env bash
# executorch 1.2.0: a split of rows in a graph fixes the batch that was exported as one that varies, without a word.
#
# Expected: what torch.export holds to vary (Dim "batch", 1 to 16) varies in the lowered program too, as it does without a split.
# Seen: where a graph splits a tensor whose first dimension is the batch (gate and value of a gated MLP, query, key and value of an
# attention), the program takes the rows of the example alone: the verifier of operations takes the first part for the whole result,
# asks for its length, and so turns the symbol into a number. Export, lowering and saving say nothing; with fewer rows the runtime ends
# with error 0x12. The dimension still varies in the exported program's own range constraints. Lowered with the verifier off
# (EdgeCompileConfig(_check_ir_validity=False)) the same program takes any number of rows.
# What is held here: which numbers of rows run, with a split and without, with the verifier and without.
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
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

logging.disable(logging.WARNING)
print("executorch", version("executorch"), "torch", torch.__version__)


class Gated(nn.Module):
    def __init__(self, split):
        super().__init__()
        self.split = split
        self.linear = nn.Linear(8, 16)

    def forward(self, x):
        y = self.linear(x)
        if self.split:
            gate, value = y.chunk(2, dim=-1)
        else:
            gate, value = y[:, :8], y[:, 8:]
        return gate.sigmoid() * value


def rows_that_run(split, verified):
    net = Gated(split).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        exported = torch.export.export(net, (torch.randn(3, 8),), dynamic_shapes=({0: batch},))
        config = EdgeCompileConfig(_check_ir_validity=verified)
        program = to_edge_transform_and_lower(exported, compile_config=config).to_executorch()
        path = Path(sys.argv[1]) / "net.pte"
        path.write_bytes(program.buffer)
        found = []
        for rows in (1, 3, 5):
            x = torch.randn(rows, 8)
            try:
                (y,) = Runtime.get().load_program(path).load_method("forward").execute((x,))
            except RuntimeError:
                continue
            torch.testing.assert_close(y, net(x))
            found.append(rows)
    return found


seen = {}
for split in (True, False):
    for verified in (True, False):
        seen[split, verified] = rows_that_run(split, verified)
        print(f"{'split' if split else 'sliced'}, {'verified' if verified else 'not verified'}: runs with {seen[split, verified]}")
assert seen == {(True, True): [3], (True, False): [1, 3, 5], (False, True): [1, 3, 5], (False, False): [1, 3, 5]}
PY
"$here/venv/bin/python" "$here/case.py" "$here"
