"""Embeddings of a split, kept for every later question: another protocol, another depth of re-ranking, matching.

They are found again by what determines them: weights, settings, arithmetic, and what the split's files hold.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, from_numpy

from encoders import EncoderOutput
from encoders.state import weights_digest, write_weights
from kernels.errors import UserError
from mm.artifacts.run import Run
from mm.data.dataset import CaptionDataset, StampedDataset, content_stamp, presence
from mm.data.features import store_key
from mm.data.module import AlignData
from mm.device import precision_name
from mm.evaluation.embed import Embedded, SplitEmbeddings, embed_split
from mm.modalities import MODALITIES

logger = logging.getLogger(__name__)
FOLDER = "embeddings"
"""Within the folder of cached features."""
ENCODED = ("tokens", "codes", "mask", "summary", "term_mask")
"""Of an EncoderOutput, what the joint reading reads."""


def embeddings_of(run: Run, data: AlignData, dataset: CaptionDataset, split: str) -> SplitEmbeddings:
    """`embed_split`, or what an earlier call found of the same weights and files.

    Args:
        run: its model is put into evaluation mode.
        data: makes the batches; its cache holds the embeddings.
        dataset: the split. One that says nothing of its files is embedded each time.
        split: names its cached features.

    Raises:
        UserError: a file that was kept is damaged.
    """
    if not isinstance(dataset, StampedDataset):
        return embed_split(run, data, data.eval_view(dataset), split)
    path = Path(data.config.cache) / FOLDER / f"{embeddings_key(run, data, dataset)}.safetensors"
    if path.is_file():
        logger.info("embeddings of %s are kept in %s", dataset.name, path)
        found = unpacked(read_kept(path))
        _read_absent(dataset, found)
        return found
    found = embed_split(run, data, data.eval_view(dataset), split)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(packed(found), path)
    return found


def embeddings_key(run: Run, data: AlignData, dataset: StampedDataset) -> str:
    """A short name for everything that determines a split's embeddings."""
    config = run.config
    settings = {modality: asdict(encoder) for modality, encoder in data.encoders.items()}
    contents = {}
    for modality, reader in data.readers.items():
        if modality != "text" and reader.source in dataset.modalities:
            contents[modality] = content_stamp(dataset, reader.source, Path(data.config.cache))
    arithmetic = (run.device.type, precision_name(config.train.precision, run.device))
    texts = (dataset.image_ids, dataset.caption_ids, dataset.captions)
    return store_key(
        weights_digest(run.model),
        asdict(config.model),
        settings,
        asdict(config.bottleneck),
        arithmetic,
        contents,
        texts,
    )


def packed(found: SplitEmbeddings) -> dict[str, Tensor]:
    """All tensors by name: `image/vectors`, `image/encoded/tokens`, …"""
    state = {"caption_ids": found.caption_ids}
    for modality, part in found.parts.items():
        state |= {f"{modality}/vectors": part.vectors, f"{modality}/tokens": part.tokens, f"{modality}/ids": part.ids}
        for name in ENCODED:
            value = getattr(part.encoded, name)
            if value is not None:
                state[f"{modality}/encoded/{name}"] = value
        state[f"{modality}/code_counts"] = from_numpy(found.code_counts[modality])
    assert found.load is not None  # embed_split
    state["load"] = from_numpy(np.ascontiguousarray(found.load))
    return state


def unpacked(state: Mapping[str, Tensor]) -> SplitEmbeddings:
    """What `packed` made."""
    parts = {}
    counts = {}
    for modality in MODALITIES:
        if f"{modality}/vectors" not in state:
            continue
        encoded = {
            name: state[f"{modality}/encoded/{name}"] for name in ENCODED if f"{modality}/encoded/{name}" in state
        }
        own = {name: state[f"{modality}/{name}"] for name in ("vectors", "tokens", "ids")}
        output = EncoderOutput(**encoded)  # type: ignore[arg-type]  # its dicts are not among them
        parts[modality] = Embedded(**own, encoded=output)
        counts[modality] = state[f"{modality}/code_counts"].numpy()
    return SplitEmbeddings(parts, state["caption_ids"], counts, state["load"].numpy())


def read_kept(path: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises UserError where it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"kept embeddings {path} cannot be read ({error}): delete the file and run again") from error


def _read_absent(dataset: CaptionDataset, found: SplitEmbeddings) -> None:
    """Read the samples again that have a file and no embedding: one that does not decode is counted so."""
    for modality, part in found.parts.items():
        if modality == "text":
            continue
        embedded = set(part.ids.tolist())
        there = presence(dataset, modality)
        for index, image_id in enumerate(dataset.image_ids):
            if there[index] and image_id not in embedded:
                dataset[index]
