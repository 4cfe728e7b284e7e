#!/usr/bin/env bash
# transformers 5.23.0: a project's own package `kernels` counts as Hugging Face's, by the version of the project.
#
# Expected: transformers looks for the distribution `kernels` of the Hugging Face hub; a project that happens to have a
# folder of that name, under another distribution, is not it.
# Seen: the import name decides, and the version is that of whatever installed distribution claims it. A project
# "my-project" 0.1.0 with a package `kernels` is found and only turned away by its version; within the accepted range
# (0.18.2 to 0.19) `is_kernels_available()` is true, so that transformers will import names of the hub's library from the
# project's folder. Whoever owns such a folder must keep it out of the distribution's metadata (top_level.txt), or rename
# it.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    transformers==5.23.0 numpy==2.4.6 setuptools==80.9.0 wheel==0.45.1
mkdir -p "$here/project/kernels"
echo 'def matmul(): ...' > "$here/project/kernels/__init__.py"
cat > "$here/case.py" <<'PY'
from importlib.metadata import version

from transformers.utils.import_utils import is_kernels_available

print("transformers", version("transformers"), "my-project", version("my-project"), "->", is_kernels_available())
PY
for version in 0.1.0 0.18.5; do
    printf '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n' \
        > "$here/project/pyproject.toml"
    printf '[project]\nname = "my-project"\nversion = "%s"\n[tool.setuptools]\npackages = ["kernels"]\n' "$version" \
        >> "$here/project/pyproject.toml"
    rm -rf "$here/project/build"
    "$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
        --force-reinstall "$here/project"
    "$here/venv/bin/python" "$here/case.py" | tee "$here/$version.txt"
done
grep -q -- '-> False' "$here/0.1.0.txt"
grep -q -- '-> True' "$here/0.18.5.txt"
