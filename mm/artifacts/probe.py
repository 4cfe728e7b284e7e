"""What a model makes of the fixed probe batch: its behavioural fingerprint, the same on every machine."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mm.modalities import probe_batch
from mm.model.multimodal import MatchInput, MultimodalModel


@torch.inference_mode()
def probe(model: MultimodalModel, encoders: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Embeddings of the probe batch by modality, and the match logits of image and text, in fp32 evaluation mode.

    encoders: the settings of each modality's encoder.
    """
    model.eval()
    batch = probe_batch(encoders).to(next(model.parameters()).device)
    output = model(batch, reconstruct=False)
    found = {modality: vectors.cpu().numpy() for modality, vectors in output.embeddings.items()}
    if "image" in found and "text" in found:
        pair = MatchInput("image", "text", output.encoded["image"], output.encoded["text"])
        found["match"] = model.match([pair]).logits[0].cpu().numpy()
    return found
