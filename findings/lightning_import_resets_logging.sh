#!/usr/bin/env bash
# lightning 2.6.6: importing it undoes a log level that was set for it before, and says everything twice beside a
# configured root logger.
#
# Expected: `logging.basicConfig(...)` and `logging.getLogger("lightning.pytorch").setLevel(WARNING)` at the start of a
# program hold, whatever is imported later; a message is written once.
# Seen: the import sets the level back to INFO, so the Trainer's INFO lines appear; each is written twice, once by a
# handler of its own on the logger `lightning` and once by the root's, since records propagate. Whoever imports
# Lightning late (to start fast) must set the level after the import.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 lightning==2.6.6
cat > "$here/case.py" <<'PY'
import logging
import subprocess
import sys

PROGRAM = """
import logging
logging.basicConfig(level=logging.INFO, format="root: %(message)s")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
import lightning
level = logging.getLogger("lightning.pytorch").level
logging.getLogger("lightning.pytorch").info("a line of the trainer")
print("version", lightning.__version__, "level", logging.getLevelName(level))
"""
done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
lines = [line for line in done.stderr.splitlines() if "a line of the trainer" in line]
print(done.stdout.strip())
print("the line was written", len(lines), "times:", lines)
assert "level INFO" in done.stdout
assert len(lines) == 2 and len(set(lines)) == 2
PY
"$here/venv/bin/python" "$here/case.py"
