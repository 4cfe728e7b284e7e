#!/usr/bin/env bash
# pycocotools 2.0.11: an annotation that stands twice in a file is one annotation for some calls and two for others.
#
# Expected: annotations are keyed by their id, so one that occurs twice with its id (two exports merged) counts once, as
# `len(coco.anns)` says, or is refused.
# Seen: `createIndex` keeps one entry in `anns` and two in `imgToAnns`; `getAnnIds` returns the id twice and `loadAnns`
# gives the caption twice. Captions, and every score that divides by their number, are doubled without a word. Of two
# images with one id the last silently takes the place of the first. A reader must look for repeated ids itself.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import contextlib
import io
from importlib.metadata import version

from pycocotools.coco import COCO

caption = {"id": 10, "image_id": 1, "caption": "a red bus"}
coco = COCO()
coco.dataset = {
    "images": [{"id": 1, "file_name": "first.jpg"}, {"id": 1, "file_name": "second.jpg"}],
    "annotations": [caption, dict(caption)],
}
with contextlib.redirect_stdout(io.StringIO()):
    coco.createIndex()
ids = coco.getAnnIds(imgIds=[1])
print("pycocotools", version("pycocotools"))
print("anns:", len(coco.anns), "| imgToAnns:", len(coco.imgToAnns[1]), "| getAnnIds:", ids)
print("captions:", [a["caption"] for a in coco.loadAnns(ids)], "| image:", coco.loadImgs([1])[0]["file_name"])
assert len(coco.anns) == 1 and len(coco.imgToAnns[1]) == 2 and ids == [10, 10]
assert coco.loadImgs([1])[0]["file_name"] == "second.jpg"
PY
"$here/venv/bin/python" "$here/case.py"
