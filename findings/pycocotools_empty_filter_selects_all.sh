#!/usr/bin/env bash
# pycocotools 2.0.11: asking for the annotations of no image gives the annotations of all.
#
# Expected: `getAnnIds(imgIds=ids)` gives the annotations of the images in `ids`; for a list that a filter left empty
# (no image of a category, none of a shard) that is none.
# Seen: an empty list means "no filter", so every annotation of the file comes back, orphans of unknown images included.
# A list with one id that the file does not know gives none. Chaining `getAnnIds(imgIds=getImgIds(catIds=...))` over
# shards or splits scores a whole file wherever a part is empty. Whoever chains must test for the empty list first.
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

coco = COCO()
coco.dataset = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 10, "image_id": 1, "category_id": 1, "area": 1, "iscrowd": 0},
        {"id": 11, "image_id": 2, "category_id": 1, "area": 1, "iscrowd": 0},
        {"id": 12, "image_id": 99, "category_id": 2, "area": 1, "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "bus"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}],
}
with contextlib.redirect_stdout(io.StringIO()):
    coco.createIndex()
print("pycocotools", version("pycocotools"))
dogs = coco.getImgIds(catIds=[3])
print("images with a dog:", dogs)
print("annotations of these images:", coco.getAnnIds(imgIds=dogs))
print("annotations of an unknown image:", coco.getAnnIds(imgIds=[7]))
assert dogs == []
assert coco.getAnnIds(imgIds=dogs) == [10, 11, 12]
assert coco.getAnnIds(imgIds=[7]) == []
PY
"$here/venv/bin/python" "$here/case.py"
