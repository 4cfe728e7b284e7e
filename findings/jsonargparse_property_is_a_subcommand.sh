#!/usr/bin/env bash
# jsonargparse 4.53.0: a property on a settings dataclass turns its whole command line into subcommands.
#
# Expected: `auto_cli(Settings)` builds the dataclass from its fields, as it does for one that has fields only; a
# read-only property is no option and changes nothing.
# Seen: one @property (or public method) makes the fields options of a parent command, and the command then demands one
# of the properties' names as a subcommand: the same call that worked before the property was added ends with
# `expected "subcommand" to be one of {area}`. The same property on a *nested* dataclass changes nothing.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'jsonargparse[signatures]==4.53.0'
cat > "$here/case.py" <<'PY'
import contextlib
import io
from dataclasses import dataclass, field

import jsonargparse


@dataclass
class Plain:
    width: int = 2
    height: int = 3


@dataclass
class WithProperty(Plain):
    @property
    def area(self) -> int:
        return self.width * self.height


@dataclass
class Outer:
    inner: WithProperty = field(default_factory=WithProperty)


def outcome(kind: type, *words: str) -> str:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return repr(jsonargparse.auto_cli(kind, args=list(words)))
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]


print("jsonargparse", jsonargparse.__version__)
found = {
    "fields only": outcome(Plain, "--width", "5"),
    "with a property": outcome(WithProperty, "--width", "5"),
    "nested": outcome(Outer, "--inner.width", "5"),
}
for name, text in found.items():
    print(f"{name}: {text}")
assert found["fields only"] == "Plain(width=5, height=3)"
assert "subcommand" in found["with a property"] and "area" in found["with a property"]
assert found["nested"] == "Outer(inner=WithProperty(width=5, height=3))"
PY
"$here/venv/bin/python" "$here/case.py"
