"""The package opens a folder by what lies in it, and loads what reads it no sooner."""

import subprocess
import sys
from pathlib import Path

from mm.data import open_split
from mm.data.coco import CocoFolder, write_coco
from mm.data.shard_writer import write_shards
from mm.data.shards import ShardFolder


def test_shards_are_preferred_unless_a_split_of_karpathys_is_asked_for(tmp_path: Path, photographs) -> None:
    write_coco(photographs(2), tmp_path, "train")
    assert isinstance(open_split(str(tmp_path), "train"), CocoFolder)
    write_shards(photographs(2), tmp_path, "train")
    assert isinstance(open_split(tmp_path, "train"), ShardFolder)


def test_importing_it_loads_neither_a_trainer_nor_what_reads_a_layout() -> None:
    script = "import sys, mm.data; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "mm.data" in loaded
    assert not {"lightning", "webdataset", "pycocotools", "mm.data.coco", "mm.data.shards"} & set(loaded)
