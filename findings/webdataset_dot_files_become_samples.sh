#!/usr/bin/env bash
# webdataset 1.0.2: the dot files that macOS puts into a tar become samples without a name, between the real ones.
#
# Expected: `tar c ./set` on a Mac adds `./set/._a.jpg` beside `./set/a.jpg`; such a member is either left out or belongs
# to a key of its own name, as `._a.jpg` at the top of a tar is left out.
# Seen: before the first dot of a name there must be something else than a dot, and a slash counts as that, so that
# `./set/._a.jpg` has the key `./set/` and the extension `_a.jpg`. They come out as one sample more for each real one,
# without image and caption: counts double, and `.to_tuple("jpg", "txt")` fails or drops them by its handler. Whoever reads
# tars that others packed must skip names whose last part begins with a dot.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6
cat > "$here/case.py" <<'PY'
import io
import sys
import tarfile
from importlib.metadata import version

import webdataset

print("webdataset", version("webdataset"))
path = f"{sys.argv[1]}/set.tar"
with tarfile.open(path, "w") as tar:
    for name in ("a.jpg", "a.txt", "._a.jpg", "b.jpg", "b.txt", "._b.jpg"):
        member = tarfile.TarInfo(f"./set/{name}")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
samples = list(webdataset.WebDataset(path, shardshuffle=False, empty_check=False))
seen = [(each["__key__"], sorted(name for name in each if not name.startswith("__"))) for each in samples]
for key, members in seen:
    print(f"key {key!r}: {members}")
assert [key for key, _ in seen] == ["./set/a", "./set/", "./set/b", "./set/"]
assert seen[0][1] == ["jpg", "txt"] and "jpg" not in seen[1][1] and "txt" not in seen[1][1]
PY
"$here/venv/bin/python" "$here/case.py" "$here"
