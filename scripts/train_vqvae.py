"""Pretrain the VQ-VAE of one modality: by default on the embedded scenes, which are generated on the first run.

    python scripts/train_vqvae.py --modality image
    python scripts/train_vqvae.py --modality audio --audio.bottleneck.quantizer.kind fsq --name fsq
    python scripts/train_align.py --image.encoder_weights runs/vqvae_image/model.safetensors

Writes runs/<name>/: config.yaml, metrics.csv, checkpoints/, model.safetensors + model.json, result.json and
reconstructions.png (inputs above, reconstructions below; for text also .txt).
"""

import logging
import time
from dataclasses import asdict
from pathlib import Path

from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from encoders.state import save_encoder
from mm.artifacts.run import commit, hardware, newest_checkpoint, write_config
from mm.batch import CaptionDataset
from mm.cli import log_training, run_command
from mm.data.module import AlignData, trainer_precision
from mm.evaluation.reconstructions import draw_reconstructions
from mm.files import write_json
from mm.train.checkpoint import SyncedCheckpointIO, regular_checkpoints
from mm.train.vqvae_task import VQVAEConfig, VQVAETask, as_align, evaluate

logger = logging.getLogger(__name__)
EVAL_BATCH = 256
SHOWN = {"image": 16, "audio": 4, "text": 12}


def train_vqvae(config: VQVAEConfig) -> None:
    started, folder = time.perf_counter(), Path(config.runs) / (config.name or f"vqvae_{config.modality}")
    write_config(config, folder)  # type: ignore[arg-type]  # any settings' dataclass will do
    seed_everything(config.seed, verbose=False)
    data = AlignData(as_align(config))
    data.setup()
    task = VQVAETask(config, data.vocabulary)
    validation = data.open(config.data.val)
    for dataset in (data.train, validation):
        if config.modality not in dataset.modalities:
            raise ValueError(f"{dataset.name} has no {config.modality}: name another data.root, or another modality")
    splits = {config.data.train: data.train, config.data.val: validation}
    data.cache_features(task, splits)  # type: ignore[arg-type]  # all it reads is .encoders
    trainer = build_trainer(config, folder)
    resume = {"ckpt_path": newest_checkpoint(folder), "weights_only": True} if config.resume else {}
    trainer.fit(task, data, **resume)  # type: ignore[arg-type]
    if trainer.is_global_zero:
        save_encoder(task.encoder, folder / "model.safetensors")
        write_json(folder / "model.json", {"kind": "vqvae", "config": asdict(config)})
        judge(task, data, validation, folder, started)


def build_trainer(config: VQVAEConfig, folder: Path) -> Trainer:
    """Raises ValueError on an accelerator or strategy that this machine does not have."""
    train = config.train
    checkpoints = regular_checkpoints(folder, train.checkpoint_every)
    try:
        return Trainer(
            max_steps=train.steps,
            max_epochs=-1,
            accelerator=train.accelerator,
            devices=train.devices,
            strategy=train.strategy,
            precision=trainer_precision(train.precision),
            use_distributed_sampler=False,
            logger=CSVLogger(folder.parent, name=folder.name, version=""),
            log_every_n_steps=min(10, train.steps),
            callbacks=[RichProgressBar(), checkpoints],
            num_sanity_val_steps=0,
            enable_model_summary=False,
            plugins=[SyncedCheckpointIO()],
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(f"train.accelerator, train.devices or train.strategy: {error}") from error


def judge(task: VQVAETask, data: AlignData, validation: CaptionDataset, folder: Path, started: float) -> None:
    """Measure and draw the validation split: result.json and reconstructions.png."""
    config, view = task.config, data.eval_view(validation)
    batches = data.caption_batches if config.modality == "text" else data.image_batches
    metrics = evaluate(task, batches(view, config.data.val, EVAL_BATCH))
    shown = next(iter(batches(view, config.data.val, SHOWN[config.modality])))
    picture = draw_reconstructions(task, shown, data.tokenizer, folder)
    parameters = sum(p.numel() for p in task.parameters() if p.requires_grad)
    write_json(
        folder / "result.json",
        {
            "metrics": {k: round(v, 4) for k, v in metrics.items()},
            "protocol": {
                "dataset": validation.name,
                "split": config.data.val,
                "images": len(validation),
                "captions": len(view.captions),
                "trained_on": data.train.name,
            },
            "config": asdict(config),
            "commit": commit(),
            "seed": config.seed,
            "hardware": hardware(),
            "seconds": round(time.perf_counter() - started, 1),
            "parameters_total": parameters,
            "parameters_active": parameters,
        },
    )
    logger.info("%s: %s", folder, ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
    logger.info("images: %s", picture or "none, a pretrained trunk is decoded to features")


if __name__ == "__main__":
    log_training()
    run_command(VQVAEConfig, train_vqvae)
