"""Settings of evaluations load without what a model needs, so that --help does not wait for it."""

import subprocess
import sys


def test_settings_load_without_models() -> None:
    program = "import sys, mm.cli, mm.evaluation.config\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "jsonargparse" in loaded and not loaded & {"lightning", "open_clip", "transformers", "mm.data"}
