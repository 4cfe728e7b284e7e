#!/usr/bin/env bash
# torch 2.11.0: an output that is called as an operation of the graph makes an ONNX file that no runtime loads.
#
# Expected: `output_names=["embedding"]` names the output, and the exporter keeps its own names of inner values apart; or it
# refuses the name.
# Seen: inner values are named after torch's operations, so that a model with an `nn.Embedding` has a value `embedding` already.
# torch.onnx.export says nothing, onnx.checker refuses the file (duplicate), and ONNX Runtime ends with "Duplicate definition of
# name (embedding)". An input and an output of one name, as of a key-value cache that comes in and goes out, do the same. A name
# with a dot, such as out.embedding, cannot be an operation's.
# What is held here: the export passes, loading fails with the name, and with out.embedding it loads.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.11.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cat > "$here/case.py" <<'PY'
import sys

import onnxruntime
import torch
from torch import nn

print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__)


class Embed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 8)

    def forward(self, ids):
        return self.table(ids) + 1


def loaded(output):
    path = f"{sys.argv[1]}/{output}.onnx"
    ids = torch.zeros(2, 3, dtype=torch.long)
    torch.onnx.export(Embed(), (ids,), path, input_names=["ids"], output_names=[output], verbose=False)
    try:
        onnxruntime.InferenceSession(path)
        return "loads"
    except Exception as error:
        return str(error)


clash = loaded("embedding")
print("embedding:", clash)
dotted = loaded("out.embedding")
print("out.embedding:", dotted)
assert "Duplicate definition of name (embedding)" in clash and dotted == "loads"
PY
"$here/venv/bin/python" "$here/case.py" "$here"
