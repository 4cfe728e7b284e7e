"""The fixed probe batch of the behavioural fingerprint: made from arithmetic, the same on every machine."""

import math

import numpy as np
import torch

from encoders.text import Tokenizer
from mm.batch import Batch
from mm.train.task import AlignTask

CAPTIONS = ["a small red circle is left of a striped square", "Two dogs run over wet grass!", "a sound, then silence"]


@torch.inference_mode()
def probe(task: AlignTask) -> dict[str, np.ndarray]:
    """Embeddings of the probe batch by modality, and the match logits of image and text, in fp32 evaluation mode."""
    task.eval()
    model, config = task.model, task.config
    batch = probe_batch(task).to(next(model.parameters()).device)
    output = model(batch, reconstruct=False)
    found = {m: v.cpu().numpy() for m, v in output.embeddings.items()}
    if "image" in found and "text" in found:
        found["match"] = (
            model.match("image", "text", output.encoded["image"], output.encoded["text"]).logits.cpu().numpy()
        )
    assert set(found) - {"match"} == set(config.model.modalities)
    return found


def probe_batch(task: AlignTask) -> Batch:
    """Three samples: waves of colour (3, 3, S, S), tones (3, samples), and captions through the run's own tokenizer."""
    config, rows = task.config, len(CAPTIONS)
    batch = Batch(torch.arange(rows), present={m: torch.ones(rows, dtype=torch.bool) for m in config.model.modalities})
    if "image" in config.model.modalities:
        x = torch.linspace(0, 1, config.image.size)
        phase = torch.arange(3 * rows).view(rows, 3, 1, 1)
        waves = torch.sin(2 * math.pi * (x[:, None] * (phase + 1) + x[None, :] * (phase + 2)) + phase)
        batch.inputs["image"] = ((waves + 1) * 127.5).to(torch.uint8)
    if "audio" in config.model.modalities:
        t = torch.arange(int(config.audio.seconds * config.audio.sample_rate)) / config.audio.sample_rate
        batch.inputs["audio"] = torch.stack([0.5 * torch.sin(2 * math.pi * 220 * (i + 1) * t) for i in range(rows)])
        batch.masks["audio"] = torch.ones_like(batch.inputs["audio"], dtype=torch.bool)
    if "text" in config.model.modalities:
        batch.inputs["text"], batch.masks["text"] = Tokenizer(config.text.trunk, config.text.max_tokens)(CAPTIONS)
    return batch
