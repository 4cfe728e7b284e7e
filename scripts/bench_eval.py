"""Evaluation measured against clip-benchmark and eccv_caption on the same embeddings, in one process, interleaved.

    python scripts/bench_eval.py --json eval/results/eval_cpu.json

Embeddings have the Karpathy test split's 5,000 images and 25,010 captions where its ground truth is given, made from
seeded noise around one centre per image. Every peer runs as its package would: clip-benchmark's recall_at_k per k and
direction on the full score matrix, eccv_caption on retrieval lists whose making is counted, as a user must make them:
the best 500 of each query, since complete lists of Python integers would need over 8 GB (this favours the
package). Peak bytes are the growth of resident memory beyond the embeddings, each implementation in its own process.
"""

import math
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from eval.coco import GroundTruth, judge
from eval.embeddings import Embeddings
from eval.retrieval import RECALL_AT, retrieval_both
from mm.cli import run_command
from mm.files import write_json

Data = dict[str, Any]
Scores = dict[str, float]
LISTED = 500


def bench_eval(
    ground_truth: Path = Path("../shared/data/coco_benchmarks"),
    width: int = 1024,
    noise: float = 4.0,
    repeats: int = 2,
    threads: int = 2,
    seed: int = 0,
    real: list[Path] | None = None,
    json: Path | None = None,
) -> None:
    """Time all retrieval protocols, ours and the packages'.

    Args:
        ground_truth: folder of ECCV Caption's data files.
        width: dimensions of the embeddings.
        noise: length of the noise for a centre of length one, in each modality.
        repeats: runs of each implementation, interleaved; the fastest counts.
        threads: CPU threads.
        seed: seed of the embeddings.
        real: embeddings.npz files of runs, on which our recalls are compared with clip-benchmark's (not timed).
        json: where to write rows and hardware.
    """
    torch.set_num_threads(threads)
    load = os.getloadavg()[0]  # above the number of threads, other work shares the cores
    data = made_embeddings(GroundTruth.load(ground_truth), width, noise, seed)
    matmul = matmul_rate(threads)
    limit = 2 * len(data["image"]) * len(data["text"]) * width / matmul
    best: dict[str, float] = {}
    scores: dict[str, Scores] = {}
    for _ in range(repeats):
        for name, run in IMPLEMENTATIONS.items():
            started = time.perf_counter()
            scores[name] = run(data)
            best[name] = min(best.get(name, math.inf), time.perf_counter() - started)
    peaks = {name: peak_of(name, data, threads) for name in IMPLEMENTATIONS}
    differences = {name: largest_difference(scores[name], scores["ours"]) for name in PEERS}
    rows = [
        {
            "implementation": name,
            "protocol": PROTOCOLS[name],
            "milliseconds": round(1000 * best[name], 1),
            "peak_bytes": peaks[name],
        }
        for name in IMPLEMENTATIONS
    ]
    result = {
        "date": date.today().isoformat(),
        "hardware": hardware(threads),
        "load_average": round(load, 2),
        "images": len(data["image"]),
        "captions": len(data["text"]),
        "width": width,
        "matmul_gflops": round(matmul / 1e9, 1),
        "limit_ms": round(1000 * limit, 1),
        "rows": rows,
        "largest_difference_percent": differences,
        "real_embeddings": [agreement(path) for path in real or []],
        "values": scores,
    }
    show(result)
    if json:
        write_json(json, result)


def made_embeddings(truth: GroundTruth, width: int, noise: float, seed: int) -> Data:
    """Unit vectors of the split: 25,000 known captions and ten more on the first ten images."""
    rng = np.random.default_rng(seed)
    images = np.array(list(dict.fromkeys(truth.images.tolist())))
    text_ids = np.concatenate([truth.images, images[:10]])
    caption_ids = np.concatenate([truth.captions, truth.captions.max() + 1 + np.arange(10)])
    position = {image: at for at, image in enumerate(images.tolist())}
    centre = unit(rng.standard_normal((len(images), width), dtype=np.float32))
    text = centre[[position[i] for i in text_ids.tolist()]]
    image = unit(centre + noise * unit(rng.standard_normal(centre.shape, dtype=np.float32)))
    text = unit(text + noise * unit(rng.standard_normal(text.shape, dtype=np.float32)))
    return {
        "image": image,
        "text": text,
        "image_ids": images,
        "text_ids": text_ids,
        "caption_ids": caption_ids,
        "known": np.isin(caption_ids, truth.captions),
        "truth": truth,
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ours_everything(data: Data) -> Scores:
    """Every protocol with every interval, as scripts/eval_coco.py computes them."""
    return ours(data, samples=1000)


def ours(data: Data, samples: int = 2) -> Scores:
    """Every protocol: 5K with 25,010 and 25,000, 1K in five folds, CxC, ECCV; both directions. No intervals."""
    figures = judge(
        data["image"],
        data["text"],
        data["image_ids"],
        data["text_ids"],
        data["caption_ids"],
        ground_truth=data["truth"],
        samples=samples,
    )
    return {f"{protocol}/{name}": value for protocol, found in figures.items() for name, value in found.metrics.items()}


def ours_one_protocol(data: Data) -> Scores:
    """What clip-benchmark computes and no more."""
    both = retrieval_both(data["image"], data["text"], data["image_ids"], data["text_ids"])
    names = ("image_to_text", "text_to_image")
    return {f"all/{n}/R@{k}": r.recall(k) for n, r in zip(names, both, strict=True) for k in RECALL_AT}


def clip_benchmark(data: Data) -> Scores:
    """5K with 25,010 captions, R@1/5/10 both ways, in the package's own batches of 64."""
    package = import_module("clip_benchmark.metrics.zeroshot_retrieval")
    position = {image: at for at, image in enumerate(data["image_ids"].tolist())}
    of_text = torch.tensor([position[i] for i in data["text_ids"].tolist()])
    scores = torch.from_numpy(data["text"]) @ torch.from_numpy(data["image"]).t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), of_text] = True
    found = {}
    for k in RECALL_AT:
        for name, s, p in (("text_to_image", scores, positive), ("image_to_text", scores.T, positive.T)):
            hits = package.batchify(package.recall_at_k, s, p, 64, "cpu", k=k) > 0
            found[f"all/{name}/R@{k}"] = 100 * hits.float().mean().item()
    return found


def eccv_caption(data: Data) -> Scores:
    """25,000 captions: 5K and 1K recalls, CxC recalls, ECCV mAP@R, R-Precision, R@1, from lists of the best 500."""
    text, caption_ids = data["text"][data["known"]], data["caption_ids"][data["known"]]
    scores = torch.from_numpy(data["image"]) @ torch.from_numpy(text).t()
    captions, images = torch.from_numpy(caption_ids), torch.from_numpy(data["image_ids"])
    i2t = dict(zip(images.tolist(), captions[scores.topk(LISTED)[1]].tolist(), strict=True))
    t2i = dict(zip(captions.tolist(), images[scores.T.contiguous().topk(LISTED)[1]].tolist(), strict=True))
    metrics = import_module("eccv_caption").Metrics()
    names = ("coco_1k_recalls", "coco_5k_recalls", "cxc_recalls", "eccv_r1", "eccv_rprecision", "eccv_map_at_r")
    peer = metrics.compute_all_metrics(i2t, t2i, target_metrics=names, Ks=RECALL_AT)
    found: Scores = {}
    for side, name in (("i2t", "image_to_text"), ("t2i", "text_to_image")):
        for theirs, mine in (("coco_5k", "five"), ("coco_1k", "folds"), ("cxc", "cxc")):
            found |= {f"{mine}/{name}/R@{k}": 100 * float(peer[f"{theirs}_r{k}"][side]) for k in RECALL_AT}
        for theirs, measure in (("eccv_map_at_r", "map_at_r"), ("eccv_rprecision", "r_precision"), ("eccv_r1", "R@1")):
            found[f"eccv/{name}/{measure}"] = 100 * float(peer[theirs][side])
    return found


IMPLEMENTATIONS: dict[str, Callable[[Data], Scores]] = {
    "ours": ours,
    "ours with intervals": ours_everything,
    "ours, 5K only": ours_one_protocol,
    "clip-benchmark": clip_benchmark,
    "eccv_caption": eccv_caption,
}
PEERS = ("clip-benchmark", "eccv_caption")
PROTOCOLS = {
    "ours": "5K (25,010 and 25,000), 1K in five folds, CxC, ECCV; both directions",
    "ours with intervals": "the same, with 1,000 bootstrap samples for every figure",
    "ours, 5K only": "5K (25,010), R@1/5/10, both directions",
    "clip-benchmark": "5K (25,010), R@1/5/10, both directions",
    "eccv_caption": "5K (25,000), 1K in five folds, CxC, ECCV; both directions",
}


def agreement(path: Path) -> dict[str, Any]:
    """Our recalls and clip-benchmark's on the embeddings that a run wrote."""
    found = Embeddings.load(path)
    data = {"image": found.image, "text": found.text, "image_ids": found.image_ids, "text_ids": found.caption_image_ids}
    return {"file": str(path)} | largest_difference(clip_benchmark(data), ours_one_protocol(data))


def largest_difference(peer: Scores, ours: Scores) -> dict[str, Any]:
    """Where a peer's figures and ours are farthest apart, in percent points."""
    worst = max(peer, key=lambda name: abs(peer[name] - ours[name]))
    return {"figures": len(peer), "largest": abs(peer[worst] - ours[worst]), "at": worst}


def peak_of(name: str, data: Data, threads: int) -> int:
    """Growth of the resident peak beyond the embeddings, in a fresh process."""
    receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure_peak, args=(name, data, threads, sender))
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def measure_peak(name: str, data: Data, threads: int, sender: Any) -> None:
    torch.set_num_threads(threads)
    torch.ones(600, 600) @ torch.ones(600, 600)  # the matrix library's own buffers are not the implementation's
    # The high-water mark of this process image alone: getrusage's would be inherited from the parent.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    IMPLEMENTATIONS[name](data)
    sender.send(high_water() - before)


def high_water() -> int:
    """Peak resident bytes of this process since the mark was last cleared (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def matmul_rate(threads: int) -> float:
    """Measured fp32 operations per second of one large product."""
    a = torch.randn(2048, 1024)
    best = math.inf
    for _ in range(6):
        started = time.perf_counter()
        a @ a.T
        best = min(best, time.perf_counter() - started)
    return 2 * 2048 * 2048 * 1024 / best


def hardware(threads: int) -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{model}, {threads} threads, torch {torch.__version__}"


def show(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['images']:,} x {result['captions']:,} x {result['width']} on {result['hardware']};"
        f" one product of that size takes {result['limit_ms']:.0f} ms",
        title_justify="left",
    )
    for column in ("implementation", "protocol", "milliseconds", "peak MB"):
        table.add_column(column, justify="left" if column in ("implementation", "protocol") else "right")
    for row in result["rows"]:
        table.add_row(
            row["implementation"], row["protocol"], f"{row['milliseconds']:,.0f}", f"{row['peak_bytes'] / 1e6:,.0f}"
        )
    Console().print(table, result["largest_difference_percent"], result["real_embeddings"])


if __name__ == "__main__":
    run_command(bench_eval)
