"""One modality's VQ-VAE from its settings to its reconstructions: train, evaluate, draw, save."""

import logging
import time
from dataclasses import asdict
from pathlib import Path

import torch
from lightning import seed_everything

from encoders.state import save_encoder, weights_digest
from kernels.errors import UserError
from mm.artifacts.environment import commit, hardware
from mm.data.config import BatchPlan
from mm.data.dataset import CaptionDataset
from mm.data.module import AlignData
from mm.device import choose_device
from mm.evaluation.codes import evaluate_codes
from mm.evaluation.reconstructions import draw_reconstructions
from mm.files import write_json
from mm.parallel.layout import is_layout
from mm.train.following import require_logger
from mm.train.identity import Identity, begin, held, samples_digest
from mm.train.trainer import build_trainer, fit
from mm.train.vqvae_config import VQVAEConfig, encoder_of
from mm.train.vqvae_task import VQVAETask, build_vqvae

logger = logging.getLogger(__name__)
EVAL_BATCH = 256
"""Samples or captions per batch of the evaluation."""
SHOWN = {"image": 16, "audio": 4, "text": 12}
"""How many reconstructions are drawn, by modality."""
DEFAULT_SHOWN = 16
"""How many of any other modality."""


def train_vqvae(config: VQVAEConfig) -> None:
    """Train, evaluate and save one modality's VQ-VAE into <runs>/<name>/.

    Args:
        config: all settings of the run.

    Raises:
        ValueError: the settings do not fit the data.
        FloatingPointError: a loss or gradient is not finite.
    """
    device = choose_device(config.train.accelerator)
    require_logger(config.train.logger)
    if is_layout(config.train.strategy):
        raise UserError(f"train.strategy {config.train.strategy}: an encoder alone is not divided, train it with ddp")
    name = config.name or f"vqvae_{config.modality}"
    folder = Path(config.runs) / name
    with held(folder):
        _train_vqvae(config, device, folder)


def _train_vqvae(config: VQVAEConfig, device: torch.device, folder: Path) -> None:
    started = time.perf_counter()
    seed_everything(config.seed, verbose=False)
    plan = BatchPlan(config.train.batch_size, config.train.steps, config.seed)
    data = AlignData(config.data, {config.modality: encoder_of(config)}, plan, config.train.precision)
    data.setup()
    encoder = build_vqvae(config, data.vocabulary)
    task = VQVAETask(config, encoder).to(device)
    validation = data.open(config.data.val)
    for dataset in (data.train, validation):
        if config.modality not in dataset.modalities:
            raise UserError(f"{dataset.name} has no {config.modality}: name another data.root, or another modality")
    splits = {config.data.train: data.train, config.data.val: validation}
    data.cache_features({config.modality: encoder}, splits)
    digests = {"initial weights": weights_digest(task), "training samples": samples_digest(data.train)}
    begin(folder, Identity.of(config, digests), config, config.resume)
    trainer = build_trainer(config.train, device, folder, [], config.resume)
    fit(trainer, task, data, folder, config.resume)
    if trainer.is_global_zero:
        save_encoder(encoder, folder / "model.safetensors")
        write_json(folder / "model.json", {"kind": "vqvae", "config": asdict(config)})
        evaluate(task, data, validation, folder, started)


def evaluate(task: VQVAETask, data: AlignData, validation: CaptionDataset, folder: Path, started: float) -> None:
    """Evaluate and draw the validation split: write result.json and reconstructions.png.

    Args:
        task: the trained encoder and its settings.
        data: reads the split's batches.
        validation: the split.
        folder: of the run.
        started: `time.perf_counter()` when the run started, in seconds.
    """
    config = task.config
    device = next(task.parameters()).device
    split = config.data.val
    logger.info("evaluating %s on %s in float32", validation.name, device)
    view = data.eval_view(validation)
    batches = data.caption_batches if config.modality == "text" else data.sample_batches
    metrics = evaluate_codes(task.encoder, config.modality, batches(view, split, EVAL_BATCH))
    rows = SHOWN.get(config.modality, DEFAULT_SHOWN)
    shown = next(batches(view, split, rows))
    drawing = draw_reconstructions(task.encoder, config.modality, shown, folder, data.tokenizer)
    parameters = sum(p.numel() for p in task.parameters() if p.requires_grad)
    protocol = {
        "dataset": validation.name,
        "split": split,
        "images": len(validation),
        "captions": len(view.captions),
        "trained_on": data.train.name,
    }
    result = {
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
        "protocol": protocol,
        "config": asdict(config),
        "commit": commit(),
        "seed": config.seed,
        "hardware": hardware(device),
        "seconds": round(time.perf_counter() - started, 1),
        "parameters_total": parameters,
        "parameters_active": parameters,
    }
    write_json(folder / "result.json", result)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    logger.info("%s: %s", folder, figures)
    logger.info("images: %s", drawing or "none, a pretrained trunk is decoded to features")
