"""Evaluation measured against clip-benchmark and eccv_caption on the same embeddings, in one process, interleaved.

Embeddings have the Karpathy test split's 5,000 images and 25,010 captions where its ground truth is given, made from
seeded noise around one centre per image. Every peer runs as its package would: clip-benchmark's recall_at_k per k and
direction on the full score matrix, eccv_caption on retrieval lists whose making is counted, as a user must make them:
the best 500 of each query, since complete lists of Python integers would need over 8 GB (this favours the
package). Peak bytes are the growth of resident memory beyond the embeddings, each implementation in its own process.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from eval.coco import DIRECTIONS, evaluate_coco
from eval.embeddings import Embeddings
from eval.ground_truth import GroundTruth
from eval.intervals import DEFAULT_BOOTSTRAP, Bootstrap
from eval.protocols import Stated
from eval.retrieval import RECALL_AT, retrieval_both
from kernels.errors import MissingError
from kernels.ranges import check_ranges
from kernels.timing import CPU, wait
from mm.artifacts.environment import hardware
from mm.device import choose_device

Scores = dict[str, float]
LISTED = 500
"""Best items of each query in eccv_caption's lists."""
PEER_BATCH = 64
"""Queries that clip-benchmark scores at a time."""
FEW_SAMPLES = Bootstrap(samples=2)
STATED = Stated("coco", "karpathy-test", "unstated")
PEER_PROTOCOLS = {"coco_5k": "five", "coco_1k": "folds", "cxc": "cxc"}
"""Recalls of eccv_caption -> our protocol."""
PEER_MEASURES = {"eccv_map_at_r": "map_at_r", "eccv_rprecision": "r_precision", "eccv_r1": "R@1"}
"""Measures of eccv_caption -> ours of the protocol `eccv`."""


@dataclass(frozen=True)
class Data:
    """What all implementations are given."""

    items: Embeddings
    truth: GroundTruth | None = None
    device: torch.device = CPU
    """Where scores are made."""


@dataclass(frozen=True)
class EvalBenchmark:
    """Time all retrieval protocols, ours and the packages'."""

    ground_truth: Path = Path("../shared/data/coco_benchmarks")
    """Folder of ECCV Caption's data files."""
    width: Annotated[int, "[1, inf)"] = 1024
    """Dimensions of the embeddings."""
    noise: Annotated[float, "[0, inf)"] = 4.0
    """Length of the noise for a centre of length one, in each modality."""
    repeats: Annotated[int, "[1, inf)"] = 2
    """Runs of each implementation, interleaved; the fastest counts."""
    threads: Annotated[int, "[1, inf)"] = 2
    """CPU threads."""
    accelerator: str = "auto"
    """cpu, gpu, or auto for a GPU where there is one."""
    seed: Annotated[int, "[0, inf)"] = 0
    """Seed of the embeddings."""
    real: list[Path] = field(default_factory=list)
    """embeddings.npz files of runs, on which our recalls are compared with clip-benchmark's (not timed)."""
    json: Path | None = None
    """Where to write rows and hardware."""

    def __post_init__(self) -> None:
        check_ranges(self)


def bench_eval(config: EvalBenchmark) -> dict[str, Any]:
    """Time, peak memory and figures of every implementation.

    Args:
        config: what is made, and how often it is evaluated.

    Returns:
        what eval/results/eval_cpu.json holds.
    """
    torch.set_num_threads(config.threads)
    device = choose_device(config.accelerator)
    load = os.getloadavg()[0]  # above the number of threads, other work shares the cores
    data = replace(made_embeddings(GroundTruth.load(config.ground_truth), config), device=device)
    images = len(data.items.image)
    captions = len(data.items.text)
    rate = matmul_rate(device)
    limit = 2 * images * captions * config.width / rate
    seconds, scores = timed(data, config.repeats)
    rows = []
    for name in IMPLEMENTATIONS:
        peak = peak_of(name, data, config.threads)
        milliseconds = round(1000 * seconds[name], 1)
        row = {
            "implementation": name,
            "protocol": PROTOCOLS[name],
            "milliseconds": milliseconds,
            "peak_bytes": peak,
        }
        rows.append(row)
    return {
        "date": date.today().isoformat(),
        "hardware": hardware(device),
        "threads": config.threads,
        "load_average": round(load, 2),
        "images": images,
        "captions": captions,
        "width": config.width,
        "matmul_gflops": round(rate / 1e9, 1),
        "limit_ms": round(1000 * limit, 1),
        "rows": rows,
        "largest_difference_percent": {name: largest_difference(scores[name], scores["ours"]) for name in PEERS},
        "real_embeddings": [agreement(path) for path in config.real],
        "values": scores,
    }


def timed(data: Data, repeats: int) -> tuple[dict[str, float], dict[str, Scores]]:
    """Of each implementation the seconds of its fastest run, and its figures."""
    seconds: dict[str, float] = {}
    scores: dict[str, Scores] = {}
    for _ in range(repeats):
        for name, run in IMPLEMENTATIONS.items():
            started = time.perf_counter()
            scores[name] = run(data)
            wait(data.device)
            taken = time.perf_counter() - started
            seconds[name] = min(seconds.get(name, math.inf), taken)
    return seconds, scores


def made_embeddings(truth: GroundTruth, config: EvalBenchmark) -> Data:
    """Unit vectors of the split: 25,000 known captions and ten more on the first ten images.

    Args:
        truth: images and captions of the split.
        config: width, noise and seed.
    """
    rng = np.random.default_rng(config.seed)
    images = truth.fold_order()
    text_ids = np.concatenate([truth.images, images[:10]])
    unknown = truth.captions.max() + 1 + np.arange(10)
    position = {image: at for at, image in enumerate(images.tolist())}
    rows = [position[image] for image in text_ids.tolist()]
    centre = unit(rng.standard_normal((len(images), config.width), dtype=np.float32))

    def noisy(vectors: np.ndarray) -> np.ndarray:
        direction = unit(rng.standard_normal(vectors.shape, dtype=np.float32))
        return unit(vectors + config.noise * direction)

    image = noisy(centre)
    text = noisy(centre[rows])
    items = Embeddings(image, text, images, text_ids, np.concatenate([truth.captions, unknown]))
    return Data(items, truth)


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, D) of length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ours_everything(data: Data) -> Scores:
    """Every protocol with every interval, as scripts/eval_coco.py computes them."""
    return ours(data, DEFAULT_BOOTSTRAP)


def ours(data: Data, bootstrap: Bootstrap = FEW_SAMPLES) -> Scores:
    """Every protocol: 5K with 25,010 and 25,000, 1K in five folds, CxC, ECCV; both directions. No intervals."""
    found: Scores = {}
    evaluated = evaluate_coco(data.items, STATED, ground_truth=data.truth, bootstrap=bootstrap, device=data.device)
    for protocol, figures in evaluated.items():
        for name, value in figures.metrics.items():
            found[f"{protocol}/{name}"] = value
    return found


def ours_one_protocol(data: Data) -> Scores:
    """What clip-benchmark computes and no more."""
    items = data.items
    image, text = _vectors(data)
    both = retrieval_both(image, text, items.image_ids, items.caption_image_ids)
    found: Scores = {}
    for direction, result in zip(DIRECTIONS, both, strict=True):
        for k in RECALL_AT:
            found[f"all/{direction}/R@{k}"] = result.recall(k)
    return found


def _vectors(data: Data) -> list[Tensor]:
    """Images (N, D) and captions (M, D) where scores are made."""
    return [torch.from_numpy(vectors).to(data.device) for vectors in (data.items.image, data.items.text)]


def clip_benchmark(data: Data) -> Scores:
    """5K with 25,010 captions, R@1/5/10 both ways, in the package's own batches of 64."""
    package = import_module("clip_benchmark.metrics.zeroshot_retrieval")
    items = data.items
    position = {image: at for at, image in enumerate(items.image_ids.tolist())}
    of_text = torch.tensor([position[image] for image in items.caption_image_ids.tolist()])
    image, text = _vectors(data)
    scores = text @ image.t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), of_text] = True
    found: Scores = {}
    for k in RECALL_AT:
        for name, s, p in (("text_to_image", scores, positive), ("image_to_text", scores.T, positive.T)):
            recalls = package.batchify(package.recall_at_k, s, p, PEER_BATCH, str(data.device), k=k)
            hits = (recalls > 0).float()
            found[f"all/{name}/R@{k}"] = 100 * hits.mean().item()
    return found


def eccv_caption(data: Data) -> Scores:
    """25,000 captions: 5K and 1K recalls, CxC recalls, ECCV mAP@R, R-Precision, R@1, from lists of the best 500."""
    items = data.items
    assert data.truth is not None and items.caption_ids is not None
    known = np.isin(items.caption_ids, data.truth.captions)
    image, text = _vectors(data)
    scores = image @ text[torch.from_numpy(known).to(text.device)].t()
    captions = torch.from_numpy(items.caption_ids[known])
    images = torch.from_numpy(items.image_ids)
    _, best_captions = scores.topk(LISTED)
    _, best_images = scores.T.contiguous().topk(LISTED)
    to_text = captions[best_captions.cpu()].tolist()
    to_image = images[best_images.cpu()].tolist()
    i2t = dict(zip(images.tolist(), to_text, strict=True))
    t2i = dict(zip(captions.tolist(), to_image, strict=True))
    metrics = import_module("eccv_caption").Metrics()
    recalls = [f"{protocol}_recalls" for protocol in PEER_PROTOCOLS]
    names = (*recalls, *PEER_MEASURES)
    peer = metrics.compute_all_metrics(i2t, t2i, target_metrics=names, Ks=RECALL_AT)
    found: Scores = {}
    for side, direction in (("i2t", "image_to_text"), ("t2i", "text_to_image")):
        for theirs, mine in PEER_PROTOCOLS.items():
            for k in RECALL_AT:
                recall = peer[f"{theirs}_r{k}"][side]
                found[f"{mine}/{direction}/R@{k}"] = 100 * float(recall)
        for theirs, measure in PEER_MEASURES.items():
            value = peer[theirs][side]
            found[f"eccv/{direction}/{measure}"] = 100 * float(value)
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
    data = Data(Embeddings.load(path))
    theirs = clip_benchmark(data)
    mine = ours_one_protocol(data)
    return {"file": str(path)} | largest_difference(theirs, mine)


def largest_difference(peer: Scores, ours: Scores) -> dict[str, Any]:
    """Where a peer's figures and ours are farthest apart.

    Returns:
        how many figures the peer has, the largest difference in percent points, and the figure's name.
    """
    apart = {name: abs(value - ours[name]) for name, value in peer.items()}
    worst = max(apart, key=lambda name: apart[name])
    return {"figures": len(peer), "largest": apart[worst], "at": worst}


def peak_of(name: str, data: Data, threads: int) -> int:
    """Growth of the resident peak beyond the embeddings, in a fresh process.

    Args:
        name: of the implementation.
        data: what it is given.
        threads: CPU threads.

    Returns:
        bytes.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure_peak, args=(name, data, threads, sender))
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def measure_peak(name: str, data: Data, threads: int, sender: Connection) -> None:
    """What the process of `peak_of` does; a GPU's peak is that of torch's allocator."""
    torch.set_num_threads(threads)
    if data.device.type == "cuda":
        IMPLEMENTATIONS[name](data)
        sender.send(torch.cuda.max_memory_allocated(data.device))
        return
    torch.ones(600, 600) @ torch.ones(600, 600)  # the matrix library's own buffers are not the implementation's
    # The high-water mark of this process image alone: getrusage's would be inherited from the parent.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    IMPLEMENTATIONS[name](data)
    sender.send(high_water() - before)


def high_water() -> int:
    """Peak resident bytes of this process since the mark was last cleared (Linux)."""
    status = Path("/proc/self/status").read_text()
    for line in status.splitlines():
        if line.startswith("VmHWM"):
            _, kilobytes, _ = line.split()
            return 1024 * int(kilobytes)
    raise MissingError("/proc/self/status has no VmHWM: peak memory is measured on Linux")


def matmul_rate(device: torch.device) -> float:
    """Measured fp32 operations per second of one large product."""
    a = torch.randn(2048, 1024, device=device)
    best = math.inf
    for _ in range(6):
        wait(device)
        started = time.perf_counter()
        a @ a.T
        wait(device)
        taken = time.perf_counter() - started
        best = min(best, taken)
    return 2 * 2048 * 2048 * 1024 / best


def benchmark_table(result: Mapping[str, Any]) -> Table:
    """A row for each implementation."""
    size = f"{result['images']:,} x {result['captions']:,} x {result['width']}"
    title = (
        f"{size} on {result['hardware']}, {result['threads']} threads;"
        f" one product of that size takes {result['limit_ms']:.0f} ms"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("implementation")
    table.add_column("protocol")
    table.add_column("milliseconds", justify="right")
    table.add_column("peak MB", justify="right")
    for row in result["rows"]:
        milliseconds = f"{row['milliseconds']:,.0f}"
        megabytes = f"{row['peak_bytes'] / 1e6:,.0f}"
        table.add_row(row["implementation"], row["protocol"], milliseconds, megabytes)
    return table
