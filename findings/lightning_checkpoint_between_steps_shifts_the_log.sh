#!/usr/bin/env bash
# lightning 2.6.6: a checkpoint written between two steps resumes with a log that is one step ahead.
#
# Expected: `trainer.save_checkpoint` from `on_train_batch_start` (a signal handler's flag is looked at there, say)
# resumes as one from `on_train_batch_end` does: weights, batches and the step of each logged row agree with a run that
# was left alone.
# Seen: weights agree, logged rows do not. On reading a checkpoint the loop always adds one to its count of steps for
# the logger, since that count is behind in what ModelCheckpoint writes in `on_train_batch_end`; between steps it is
# not behind. Every value after the resume stands in metrics.csv under the step after its own, and each further stop
# shifts the rest by one more. Write the checkpoint in `on_train_batch_end`, and stop in the next `on_train_batch_start`.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.11.0 lightning==2.6.6
cat > "$here/case.py" <<'PY'
import csv
import sys
import warnings
from pathlib import Path

import lightning
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

warnings.filterwarnings("ignore")
HERE = Path(sys.argv[1])


class Count(LightningModule):
    """Logs the number of the step it is in."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        self.log("own_step", float(self.global_step))
        return (self.weight - batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(8), batch_size=1)


class SaveBetween(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == 3:
            trainer.save_checkpoint(HERE / "start.ckpt")


class SaveAtEnd(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == 3:
            trainer.save_checkpoint(HERE / "end.ckpt")


def fit(name, callbacks, checkpoint=None):
    logger = CSVLogger(HERE, name=name, version="")
    trainer = Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=logger,
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Count()
    trainer.fit(module, ckpt_path=checkpoint, weights_only=False)
    rows = list(csv.DictReader((HERE / name / "metrics.csv").open()))
    shifts = {int(row["step"]) - int(float(row["own_step"])) for row in rows}
    return shifts, module.weight.item()


whole = fit("whole", [SaveBetween(), SaveAtEnd()])
end = fit("from_end", [], HERE / "end.ckpt")
start = fit("from_start", [], HERE / "start.ckpt")
print("lightning", lightning.__version__)
print("logged step minus own step: whole", whole[0], "| saved in on_train_batch_end", end[0], "| between", start[0])
print("weights equal:", whole[1] == end[1] == start[1])
assert whole[1] == end[1] == start[1]
assert (whole[0], end[0], start[0]) == ({0}, {0}, {1})
PY
"$here/venv/bin/python" "$here/case.py" "$here" 2>/dev/null
