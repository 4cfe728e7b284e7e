#!/usr/bin/env bash
# pycocoevalcap 1.2: a caption that holds a line separator gives every later caption to the wrong image, in silence.
#
# Expected: captions are tokenized one by one, so that odd white space in one of them (a carriage return of a Windows
# file, the line separators U+2028 and U+2029 that word processors leave, a form feed) concerns that caption alone, as a
# newline does, which is replaced by a space.
# Seen: all captions go to Java as one text, a line each, and come back by position. At those characters Java ends a
# line, so the caption falls apart, the images after it get the caption of the one before, and the last is dropped:
# BLEU, METEOR, ROUGE and CIDEr of a whole set are then of mixed-up images, and nothing is said. Whoever scores captions
# must join each one's words by single spaces first.
# Needs Java, which the tokenizer calls.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check pycocoevalcap==1.2 pycocotools==2.0.11 numpy==2.4.6
cat > "$here/case.py" <<'PY'
from importlib.metadata import version

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

print("pycocoevalcap", version("pycocoevalcap"))
PLAIN = {1: ["a dog runs"], 2: ["a red bus"], 3: ["two men"]}
SHIFTED = {1: ["a dog"], 2: ["runs"], 3: ["a red bus"]}


def tokenized(between):
    captions = {1: f"a dog{between}runs", 2: "a red bus", 3: "two men"}
    return PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in captions.items()})


for name, between in [("newline", "\n"), ("tab", "\t"), ("next line", "\x85")]:
    found = tokenized(between)
    print(f"{name}: {found}")
    assert found == PLAIN
for name, between in [("carriage return", "\r"), ("U+2028", "\u2028"), ("U+2029", "\u2029"), ("form feed", "\f")]:
    found = tokenized(between)
    print(f"{name}: {found}")
    assert found == SHIFTED
PY
"$here/venv/bin/python" "$here/case.py" 2> "$here/java.txt" || { cat "$here/java.txt"; exit 1; }
