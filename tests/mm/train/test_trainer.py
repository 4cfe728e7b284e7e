"""The one builder of a Trainer hands on what it was told."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mm.config import TrainConfig
from mm.train.trainer import build_trainer


def test_machines_and_their_devices_reach_the_trainer(tmp_path: Path) -> None:
    train = TrainConfig(accelerator="cpu", devices=2, num_nodes=3, strategy="ddp", precision="fp32")
    trainer = build_trainer(train, torch.device("cpu"), tmp_path, (), resume=False)
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size) == (2, 3, 6)
    with pytest.raises(ValueError, match=r"train\.num_nodes=0"):
        replace(train, num_nodes=0)
