#!/usr/bin/env bash
# open_clip_torch 3.3.0: weights given as a file are preprocessed as OpenAI's CLIP, whatever the model.
#
# Expected: `create_model_and_transforms("ViT-B-16-SigLIP", pretrained=FILE)` prepares images as the same weights by
# their tag are prepared: SigLIP's mean and deviation of 0.5, images squashed to a square.
# Seen: mean, deviation and resizing belong to the tag and not to the architecture, so a file gets OpenAI's mean
# (0.481, 0.458, 0.408), its deviation and a crop of the centre, without a warning; a state dict has no word about it.
# Zero-shot figures of a downloaded or fine-tuned checkpoint are then those of images the model never saw. MobileCLIP
# (mean 0, deviation 1) is worse off. Whoever loads a file must pass image_mean, image_std and image_resize_mode, or take
# them from `get_pretrained_cfg(model, tag)`.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    open_clip_torch==3.3.0 timm==1.0.27 torch==2.11.0 torchvision==0.26.0 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import sys
from importlib.metadata import version

import open_clip
import torch

print("open_clip_torch", version("open_clip_torch"))
NAME = "ViT-B-16-SigLIP"
file = sys.argv[1]
model = open_clip.create_model(NAME, pretrained=None)
torch.save(model.state_dict(), file)
del model
model, _, transform = open_clip.create_model_and_transforms(NAME, pretrained=file)
by_tag = open_clip.get_pretrained_cfg(NAME, "webli")
normalize = transform.transforms[-1]
print("by its tag:", {key: by_tag[key] for key in ("mean", "std", "resize_mode")})
print("by a file: ", {"mean": normalize.mean, "std": normalize.std}, "then", transform.transforms[1])
assert by_tag["mean"] == (0.5, 0.5, 0.5) and by_tag["resize_mode"] == "squash"
assert tuple(normalize.mean) == open_clip.OPENAI_DATASET_MEAN
assert tuple(normalize.std) == open_clip.OPENAI_DATASET_STD
assert type(transform.transforms[1]).__name__ == "CenterCrop"
PY
"$here/venv/bin/python" "$here/case.py" "$here/weights.pt"
