"""Models that already exist, on a split: a finished run, or a bare open_clip model as a peer."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from rich.progress import track

from encoders.trunks import open_clip_model
from mm.data.module import AlignData
from mm.data.sample import CaptionDataset
from mm.evaluate import evaluate_split
from mm.results import describe
from mm.run import load_run


def judge_run(
    folder: str | Path,
    root: str | None,
    split: str,
    *,
    karpathy: str | None = None,
    audio_root: str | None = None,
    rerank: int | None = None,
) -> tuple[dict, dict[str, np.ndarray]]:
    """A run's weights unchanged on a split -> (result.json content, arrays of embeddings.npz).

    Without `root`, the run's own data.
    """
    started, task = time.perf_counter(), load_run(folder)
    trained = task.config.data
    data_config = trained if root is None else replace(trained, root=root, karpathy=karpathy, audio_root=audio_root)
    depth = task.config.eval.rerank if rerank is None else rerank
    config = replace(
        task.config, data=replace(data_config, in_memory=False, val=split), eval=replace(task.config.eval, rerank=depth)
    )
    task.config = config
    data = AlignData(config)
    dataset = data.open(split)
    data.cache_features(task.model, {split: dataset})
    evaluation = evaluate_split(task.model, task.loss, data, dataset, split, config.eval)
    result = describe(
        task, {split: evaluation}, {split: dataset}, f"{Path(trained.root or 'scenes').name}/{trained.train}"
    )
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result, evaluation.embeddings.arrays()


@torch.inference_mode()
def embed_with_open_clip(name: str, dataset: CaptionDataset, batch_size: int = 64) -> dict[str, np.ndarray]:
    """`ViT-B-32:tag` or a bare name (random weights) with its own preprocessing -> arrays of embeddings.npz."""
    model = open_clip_model(name, None)
    model.eval()
    transform = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    tokenizer = open_clip.get_tokenizer(name.partition(":")[0])
    captions = [c for group in dataset.captions for c in group]
    positions = range(0, len(dataset), batch_size)
    images = [
        model.encode_image(
            torch.stack([transform(_picture(dataset, i)) for i in range(at, min(at + batch_size, len(dataset)))]),
            normalize=True,
        )
        for at in track(positions, f"images through {name}", transient=True)
    ]
    starts = range(0, len(captions), batch_size)
    texts = [
        model.encode_text(tokenizer(captions[at : at + batch_size]), normalize=True)
        for at in track(starts, f"captions through {name}", transient=True)
    ]
    counts = [len(group) for group in dataset.captions]
    return {
        "image": torch.cat(images).float().numpy(), "text": torch.cat(texts).float().numpy(),
        "image_ids": np.array(dataset.image_ids), "caption_image_ids": np.repeat(dataset.image_ids, counts),
        "caption_ids": np.array([i for group in dataset.caption_ids for i in group]),
    }  # fmt: skip


def _picture(dataset: CaptionDataset, index: int):  # type: ignore[no-untyped-def]  # a PIL image
    image = dataset[index].image
    if image is None:
        raise ValueError(f"{dataset.name}: sample {dataset[index].key} has no picture")
    return image.convert("RGB")


