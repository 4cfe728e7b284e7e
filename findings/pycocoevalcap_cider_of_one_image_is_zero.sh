#!/usr/bin/env bash
# pycocoevalcap 1.2: the CIDEr of a caption depends on which other images are scored with it; alone it is 0.
#
# Expected: a caption equal to its reference gets the best score, and an image's score is a matter of its captions, so
# that scores of shards, of processes or of a filtered part can be averaged, as BLEU's and ROUGE's per image can.
# Seen: words are weighed by how few of the *scored* images have them, so the same pair gets 0.0 alone, 10.0 beside
# another image, and less as soon as another image shares its words. CIDEr by batch, by rank or by category is neither
# an average nor a part of CIDEr of the whole set, and of a single image it is 0 for every caption. The whole set must be
# gathered before it is scored.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check pycocoevalcap==1.2 pycocotools==2.0.11 numpy==2.4.6
cat > "$here/case.py" <<'PY'
from importlib.metadata import version

from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

print("pycocoevalcap", version("pycocoevalcap"))
REFERENCES = {
    0: ["a red bus on the road"],
    1: ["two dogs play in the grass"],
    2: ["a red bus on the bridge"],
}
CAPTIONS = {0: ["a red bus on a road"], 1: ["two dogs play in the grass"], 2: ["a red bus on the bridge"]}


def scored(scorer, images):
    _, each = scorer.compute_score({i: REFERENCES[i] for i in images}, {i: CAPTIONS[i] for i in images})
    return {i: round(float(score), 2) for i, score in zip(images, each)}


for images in ([1], [0, 1], [0, 1, 2]):
    print("images", images, "CIDEr", scored(Cider(), images), "ROUGE-L", scored(Rouge(), images))
assert scored(Cider(), [1]) == {1: 0.0}
assert scored(Cider(), [0, 1])[1] == scored(Cider(), [0, 1, 2])[1] == 10.0
assert scored(Cider(), [0, 1])[0] != scored(Cider(), [0, 1, 2])[0]
assert scored(Rouge(), [0, 1])[0] == scored(Rouge(), [0, 1, 2])[0]
PY
"$here/venv/bin/python" "$here/case.py"
