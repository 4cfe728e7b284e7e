#!/usr/bin/env bash
# torchvision 0.26.0: apply_exif_orientation=True turns JPEG and PNG, and leaves WebP as it lies.
#
# Expected: `decode_image(data, apply_exif_orientation=True)` turns every image that says it must be turned, whatever the
# container; all three can hold EXIF and Pillow reads it in all three.
# Seen: a WebP of 8 × 4 with orientation 6 stays 8 × 4, without a warning; the same as JPEG or PNG becomes 4 × 8. A data
# set that was converted to WebP is read on its side while its JPEG original is upright. WebP must be turned by the
# caller, or read with Pillow and ImageOps.exif_transpose.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torchvision==0.26.0 torch==2.11.0 pillow==13.0.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import io
from importlib.metadata import version

import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

print("torchvision", version("torchvision"), "pillow", version("pillow"))
exif = Image.Exif()
exif[0x0112] = 6
seen = {}
for kind in ("JPEG", "PNG", "WEBP"):
    file = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(file, kind, exif=exif.tobytes())
    buffer = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    _, height, width = decode_image(buffer, ImageReadMode.RGB, apply_exif_orientation=True).shape
    upright = ImageOps.exif_transpose(Image.open(file)).size
    seen[kind] = ((width, height), upright)
    print(f"{kind}: {width} x {height} by torchvision, {upright[0]} x {upright[1]} by Pillow")
assert seen["JPEG"] == seen["PNG"] == ((4, 8), (4, 8))
assert seen["WEBP"] == ((8, 4), (4, 8))
PY
"$here/venv/bin/python" "$here/case.py"
