#!/usr/bin/env bash
# torch 2.11.0: an example input that is a part of a wider tensor keeps the exported program from inputs as wide as the whole.
#
# Expected: with a dynamic second dimension between 2 and 40 the strides of the example say nothing; or, if they count, an error
# that speaks of strides. A tokenizer pads to 40 and cuts where the longest caption ends, `ids[:, :13]`: the most natural
# example there is.
# Seen: `Constraints violated (length)! ... Not all values of length ... satisfy the generated guard ids.size()[1] != 40`: a
# number that stands nowhere in the module. 40 is the stride of the example, which would be contiguous at that length. Where a
# range is left to torch (Dim.AUTO, Dim.DYNAMIC) nothing is said, and the guard stays. `ids[:, :13].contiguous()` exports, and
# its program takes 40 tokens.
# What is held here: the error with the part, that it names 40, and that its contiguous copy exports and takes 40.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import torch
from torch import nn
from torch.export import Dim

print("torch", torch.__version__)


class Embed(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 8)

    def forward(self, ids):
        rows = (ids + 1).contiguous()
        return self.table(rows).sum(1)


sizes = ({0: Dim("batch", min=1, max=64), 1: Dim("length", min=2, max=40)},)
whole = torch.randint(0, 99, (3, 40))
part = whole[:, :13]
try:
    torch.export.export(Embed(), (part,), dynamic_shapes=sizes, strict=False)
    said = ""
except Exception as error:
    said = str(error)
print("a part:", said.splitlines()[1] if said else "exported")
program = torch.export.export(Embed(), (part.contiguous(),), dynamic_shapes=sizes, strict=False)
print("its contiguous copy takes 40 tokens:", tuple(program.module()(whole).shape))
assert "!= 40" in said
PY
"$here/venv/bin/python" "$here/case.py"
