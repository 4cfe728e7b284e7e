#!/usr/bin/env bash
# executorch 1.2.0: flattening what is channels last gives the values in another order, without a word.
#
# Expected: a graph in which an image is made `contiguous(memory_format=torch.channels_last)`, as is usual in front of
# convolutions on CPUs, computes what eager computes: memory format is a matter of speed.
# Seen: the convolution itself is right, and `flatten(2).transpose(1, 2)` behind it, which makes tokens of an image, reads its
# memory as if channels came first: the output has the right shape and the wrong order, off by more than its own size. Export, lowering and
# execution say nothing. Without the change of format it is right to 1e-7. Whoever tests shapes alone ships a model that is
# noise.
# What is held here: the error with channels last, and without.
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
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn

print("executorch", version("executorch"), "torch", torch.__version__)


class Tokens(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.last = last
        self.stem = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, image):
        if self.last:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.stem(image).flatten(2).transpose(1, 2)


def error(last):
    torch.manual_seed(0)
    net = Tokens(last).eval()
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        exported = torch.export.export(net, (image,))
        program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
        path = Path(sys.argv[1]) / "net.pte"
        path.write_bytes(program.buffer)
        found = Runtime.get().load_program(path).load_method("forward").execute((image,))[0]
        expected = net(image)
    assert found.shape == expected.shape
    return ((found - expected).norm() / expected.norm()).item()


wrong = error(last=True)
plain = error(last=False)
print(f"channels last: off by {100 * wrong:.0f} %; as it was: {plain:.1e}")
assert wrong > 1 and plain < 1e-6
PY
"$here/venv/bin/python" "$here/case.py" "$here"
