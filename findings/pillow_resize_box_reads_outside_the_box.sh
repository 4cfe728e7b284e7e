#!/usr/bin/env bash
# Pillow 13.0.0: `resize(size, box=...)` mixes in pixels from outside of the box.
#
# Expected: `image.resize(size, resample, box=box)` is `image.crop(box).resize(size, resample)`, only faster: the box is
# documented as the source region to be scaled.
# Seen: the filter's support reaches beyond the box. A black square in a white image, cut out exactly and made smaller,
# comes back with a grey frame (38 at the edges and 20 along the first row, of 255, bicubic; 60 and 32 bilinear), where
# crop and resize gives black. Random resized crops done by `box` leak their surroundings, and differ from torchvision's,
# which crops first; tiles resized by `box` do not equal tiles cut first.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check pillow==13.0.0
cat > "$here/case.py" <<'PY'
from importlib.metadata import version

from PIL import Image

print("pillow", version("pillow"))
image = Image.new("L", (64, 64), 255)
box = (16, 16, 48, 48)
image.paste(0, box)
rows = {}
for name in ("BILINEAR", "BICUBIC"):
    filter_ = Image.Resampling[name]
    by_box = image.resize((8, 8), filter_, box=box)
    cropped = image.crop(box).resize((8, 8), filter_)
    rows[name] = [[each.getpixel((x, 0)) for x in range(8)] for each in (by_box, cropped)]
    print(f"{name}: first row by box {rows[name][0]}, by crop {rows[name][1]}")
assert rows["BICUBIC"] == [[38, 20, 20, 20, 20, 20, 20, 38], [0] * 8]
assert rows["BILINEAR"] == [[60, 32, 32, 32, 32, 32, 32, 60], [0] * 8]
PY
"$here/venv/bin/python" "$here/case.py"
