#!/usr/bin/env bash
# torchvision 0.26.0: asked for alpha, a PNG without an alpha channel loses its transparency, or becomes transparent.
#
# Expected: `decode_image(data, ImageReadMode.RGB_ALPHA)` gives alpha 0 where a PNG names a transparent colour (tRNS of an
# RGB or grey image), and alpha 255 for an image that has no transparency at all.
# Seen: the transparent colour of RGB and grey PNGs is ignored, alpha is 255 everywhere; a palette PNG without
# transparency comes back with alpha 0 everywhere, so that laid over a background it vanishes. A palette PNG *with*
# transparency is right, and so is Pillow in all four cases. Nothing is raised. Whoever lays images over a background by
# their alpha must send such PNGs (no alpha channel, by the colour type in the header) through Pillow.
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
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

print("torchvision", version("torchvision"), "pillow", version("pillow"))


def png(mode, background, foreground, **options):
    image = Image.new(mode, (4, 4), background)
    if mode == "P":
        image.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    image.paste(foreground, (0, 0, 2, 4))
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def alphas(data):
    buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    theirs = decode_image(buffer, ImageReadMode.RGB_ALPHA)[3].unique().tolist()
    pillow = sorted(set(Image.open(io.BytesIO(data)).convert("RGBA").getchannel("A").tobytes()))
    return theirs, pillow


seen = {
    "RGB, red is transparent": alphas(png("RGB", (255, 0, 0), (0, 0, 255), transparency=(255, 0, 0))),
    "grey, 200 is transparent": alphas(png("L", 200, 10, transparency=200)),
    "palette, entry 0 is transparent": alphas(png("P", 0, 1, transparency=0)),
    "palette, nothing is transparent": alphas(png("P", 0, 1)),
}
for name, (theirs, pillow) in seen.items():
    print(f"{name}: alphas by torchvision {theirs}, by Pillow {pillow}")
assert [pillow for _, pillow in seen.values()] == [[0, 255], [0, 255], [0, 255], [255]]
assert [theirs for theirs, _ in seen.values()] == [[255], [255], [0, 255], [0]]
PY
"$here/venv/bin/python" "$here/case.py"
