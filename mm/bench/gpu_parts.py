"""What `mm.bench.gpu` measures: generators of what they have found so far.

What a part does before its first `yield` is prepared while another part runs; only what follows has the device alone.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eval.retrieval import retrieval_both
from kernels import bench
from kernels.errors import MissingError
from kernels.grouped_mlp import grouped_mlp
from kernels.testing import ContrastiveCase, GroupedMLPCase, NearestCodeCase
from kernels.timing import Contest
from kernels.timing import Run as Step
from mm.artifacts.results import read_result
from mm.artifacts.run import build_run
from mm.artifacts.settings import read_text, read_yaml, settings_from_dict
from mm.artifacts.upgrade import upgrade_config
from mm.bench.config import FeaturesConfig, GpuConfig, GpuPart, StepConfig
from mm.bench.device_calls import captured, device_calls, host_waits
from mm.bench.features import measure_features
from mm.bench.gpu_writing import writing
from mm.bench.step import Standing, standing, timed
from mm.config import AlignConfig, EvalConfig, encoders_of, plan_of
from mm.data.config import DataConfig
from mm.data.module import AlignData
from mm.data.scenes import ensure_scenes
from mm.evaluation.retrieval import evaluate_split

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "kernels"
BATCHES = (32, 256, 1024)
"""At which steps are measured."""
MEMORY_BATCH = 256
"""At which the memory of a step is."""
SPARSE = {
    "16384x2048, 128 experts of 768, top-8": GroupedMLPCase(16384, 128, 8, 2048, 768),
    "7526x128, 128 experts of 32, top-8": GroupedMLPCase(7526, 128, 8, 128, 32),
}
EVALUATED = (5000, 25010, 1024)
"""Images, captions and width of the evaluator's case: Karpathy's test split."""
TRUNK = "vit_small_patch14_dinov2"
"""Of timm, with random weights: the time is the same."""
RUN_STEPS = 140
"""Of the whole run."""
DEPTHS = (2, 16)
"""Of re-ranking."""
PLACES = 12
"""How many places at which the host waits are written down."""
Found = dict[str, Any]
Settings = TypeVar("Settings", bound=AlignConfig)


@dataclass(frozen=True)
class Context:
    """What every part is given.

    Args:
        config: of the check.
        script: train_align.py, which a run is started by.
        work: a folder for the check's own files.
        device: where everything is measured.
    """

    config: GpuConfig
    script: Path
    work: Path
    device: torch.device

    @property
    def repeats(self) -> int:
        """Rounds of a contest."""
        return 1 if self.config.tiny else 5

    def data(self) -> DataConfig:
        """Embedded scenes, made once for all parts: as many as a batch holds, and what is evaluated."""
        sizes = {"train": 24, "val": 8, "seen": 8} if self.config.tiny else {"train": max(BATCHES), "val": 500}
        root = ensure_scenes(self.work / "scenes", sizes=sizes)
        return DataConfig(root=str(root), cache=str(self.work / "cache"))

    def settings(self, kind: type[Settings], batch_size: int) -> Settings:
        """The file's, for steps of another size."""
        source = str(self.config.settings)
        content = upgrade_config(read_yaml(read_text(self.config.settings), source), source)
        config = settings_from_dict(kind, content, source)
        train = replace(config.train, batch_size=batch_size, accelerator=self.config.accelerator)
        return replace(config, data=self.data(), train=train)

    def contest(self, op: str, case: str, dtype: str, runs: dict[str, Step]) -> Contest:
        """Of forward and backward passes on the device."""
        return Contest(op, case, dtype, "forward_backward", runs, device=self.device)


def parity(context: Context) -> Iterator[Found]:
    """The kernels' tests, on the device that they find: how many ran, and the names of those that failed."""
    yield {}
    if find_spec("pytest") is None:
        raise MissingError("pytest is not installed: pip install pytest, or leave parity out of --parts")
    report = context.work / "parity.xml"
    tests = TESTS / "test_dispatch.py" if context.config.tiny else TESTS
    # Every test is named as it ends: the report is written after the last one, for which there may be no time.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib -v", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", str(tests)]
    if find_spec("xdist") and not context.config.tiny:
        command += ["-n", str(max(2, (os.cpu_count() or 2) - 4))]  # They compile; the other parts prepare beside them.
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {done.returncode} and wrote no report")
    yield counted_tests(report)


def counted_tests(report: Path) -> Found:
    """What a JUnit file of pytest says: how many tests passed and were skipped, and the names of those that failed."""
    passed = 0
    skipped = 0
    failed = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failed": failed}


def kernels(context: Context) -> Iterator[Found]:
    """The rows of kernels/bench.py, the quick contests first."""
    rows: list[bench.Row] = []
    yield {"rows": rows}
    if context.config.tiny:
        for contest in tiny_contests():
            contest.device = torch.device(bench.DEVICE)
            rows += contest.rows(1)
        yield {"rows": rows}
        return
    ops: tuple[bench.Op, ...] = ("nearest_code", "info_nce", "grouped_mlp")
    for op in ops:
        for found in bench.run_contests(op, context.repeats, largest=32768):
            rows += found
            yield {"rows": rows}


def tiny_contests() -> Iterator[Contest]:
    """One of each operation."""
    yield from bench.mlp_contest("tiny", GroupedMLPCase(6, 3, 2, 16, 16), torch.float32)
    yield from bench.code_contest(NearestCodeCase(130, 8, 4), "euclidean")
    yield from bench.loss_contest(ContrastiveCase(6, 8))


def sparse(context: Context) -> Iterator[Found]:
    """Experts beside a dense layer of as many active, and of as many parameters in all: forward and backward."""
    rows: list[bench.Row] = []
    yield {"rows": rows}
    cases = {"tiny": GroupedMLPCase(6, 4, 2, 16, 16)} if context.config.tiny else SPARSE
    for name, case in cases.items():
        rows += sparse_contest(context, name, case).rows(context.repeats)
        yield {"rows": rows}


def sparse_contest(context: Context, name: str, case: GroupedMLPCase) -> Contest:
    """In bfloat16, whose arithmetic a GPU is built for; in float32 on a CPU."""
    dtype = torch.float32 if context.device.type == "cpu" else torch.bfloat16
    draw = torch.Generator(context.device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        """Of a variance that keeps that of what it multiplies."""
        values = torch.randn(shape, generator=draw, device=context.device, dtype=dtype)
        return values.mul_(shape[-1] ** -0.5).requires_grad_()

    x = drawn(case.tokens, case.width)
    w_in = drawn(case.num_experts, 2 * case.hidden, case.width)
    w_out = drawn(case.num_experts, case.width, case.hidden)
    scores = torch.randn(case.tokens, case.num_experts, generator=draw, device=context.device)
    best = scores.topk(case.top_k)
    weights = best.values.softmax(-1).to(dtype)
    leaves = [x, w_in, w_out]
    runs: dict[str, Step] = {"experts": lambda: grouped_mlp(x, w_in, w_out, best.indices, weights)}
    for equal, experts in (("dense, equal active", case.top_k), ("dense, equal total", case.num_experts)):
        up = drawn(2 * experts * case.hidden, case.width)
        down = drawn(case.width, experts * case.hidden)
        leaves += [up, down]
        runs[equal] = lambda up=up, down=down: bench.dense_mlp(x, up, down)  # type: ignore[misc]
    grad = torch.randn(case.tokens, case.width, generator=draw, device=context.device, dtype=dtype)
    both = {implementation: _with_backward(run, grad) for implementation, run in runs.items()}
    contest = context.contest("sparse", name, str(dtype).removeprefix("torch."), both)
    contest.leaves = leaves
    return contest


def _with_backward(run: Step, grad: Tensor) -> Step:
    return lambda: run().backward(grad)


def memory(context: Context) -> Iterator[Found]:
    """Peak memory and time of a step, with gradient checkpointing of the backbone and without."""
    batch_size = 4 if context.config.tiny else MEMORY_BATCH
    runs = {}
    config = context.settings(StepConfig, batch_size)
    for name, checkpoint in (("without", False), ("with", True)):
        backbone = replace(config.model.backbone, checkpoint=checkpoint)
        changed = replace(config, model=replace(config.model, backbone=backbone))
        runs[f"{name} checkpointing"] = standing(changed, context.device).own_step(capture=False)
    for own in runs.values():
        own()  # compiles its kernels
    yield {}
    yield {"rows": timed(runs, replace(config, repeats=context.repeats), context.device)}


def step(context: Context) -> Iterator[Found]:
    """A late step, all losses on: beside open_clip's, with what it asks of the device, by batch size."""
    sizes = (4,) if context.config.tiny else BATCHES
    prepared = {}
    for size in sizes:
        run = standing(context.settings(StepConfig, size), context.device)
        prepared[size] = (run, implementations(context, run))
    batches: dict[str, Found] = {}
    yield {"batches": batches}
    for size, (run, steps) in prepared.items():
        batches[str(size)] = {"milliseconds_of_data": run.milliseconds_of_data}
        for found in measured_step(context, steps, context.settings(StepConfig, size)):
            batches[str(size)] |= found
            yield {"batches": batches}


def implementations(context: Context, run: Standing) -> dict[str, Step]:
    """Steps by name, each of which has been taken once: its kernels are compiled."""
    steps = {"ours": run.own_step()}
    if context.device.type == "cuda":
        steps["ours, eager"] = run.own_step(capture=False)
    if run.has_pairs and find_spec("open_clip"):
        steps["open_clip"] = run.peer_step()
        if context.device.type == "cuda":
            steps["open_clip, captured"] = captured(run.peer_step(batches=1))
    for each in steps.values():
        each()
    return steps


def measured_step(context: Context, steps: dict[str, Step], config: StepConfig) -> Iterator[Found]:
    """Times first, then calls: what is counted slows a step down."""
    ours = steps["ours"]
    found: Found = {}
    found["rows"] = timed(steps, replace(config, repeats=context.repeats), context.device)
    yield found
    called = device_calls(ours, context.device)
    busy = called["busy_milliseconds"] / found["rows"][0]["milliseconds"]
    found |= called | {"busy_share": round(busy, 4)}
    if context.device.type == "cuda":
        waits = host_waits(ours)
        found |= {"waits": waits.total(), "waits_at": dict(waits.most_common(PLACES))}
    yield found


def evaluation(context: Context) -> Iterator[Found]:
    """The evaluator beside its one product, features of a frozen trunk, and a split embedded and re-ranked."""
    config = context.settings(AlignConfig, 32)
    data = AlignData(config.data, encoders_of(config), plan_of(config), config.train.precision)
    data.setup()
    run = build_run(config, data.vocabulary).to(context.device)
    dataset = data.open("val")
    features = trunk_config(context)
    evaluate_split(run, data, dataset, "val", EvalConfig(rerank=DEPTHS[0]))  # compiles its kernels
    yield {}
    found: Found = {"evaluator": evaluator_contest(context).rows(context.repeats)}
    yield found
    found["features"] = measure_features(features, context.device)
    yield found
    for depth in (0, *DEPTHS):
        started = time.perf_counter()
        evaluate_split(run, data, dataset, "val", EvalConfig(rerank=depth))
        taken = time.perf_counter() - started
        found.setdefault("seconds_at_depth", {})[str(depth)] = round(taken, 3)
        yield found


def evaluator_contest(context: Context) -> Contest:
    """Both directions of retrieval, and the product that they cannot do without."""
    images, captions, width = (10, 50, 8) if context.config.tiny else EVALUATED
    draw = torch.Generator(context.device).manual_seed(0)
    centre = torch.randn(images, width, generator=draw, device=context.device)
    ids = torch.arange(captions) % images
    noise = torch.randn(captions, width, generator=draw, device=context.device)
    image = normalize(centre, dim=1)
    text = normalize(centre[ids.to(context.device)] + 4 * noise, dim=1)
    runs: dict[str, Step] = {
        "ours": lambda: retrieval_both(image, text, torch.arange(images), ids),
        "product": lambda: image @ text.T,
    }
    case = f"{images:,} x {captions:,} x {width:,}"
    return Contest("evaluator", case, "float32", "forward", runs, device=context.device)


def trunk_config(context: Context) -> FeaturesConfig:
    """The scratch trunk, or one of timm's with weights that are made here, where timm is at hand."""
    config = context.settings(FeaturesConfig, 32)
    if context.config.tiny or find_spec("timm") is None:
        return replace(config, repeats=1, images=4)
    import timm
    from safetensors.torch import save_file

    weights = context.work / "trunk.safetensors"
    save_file(timm.create_model(TRUNK, pretrained=False, num_classes=0).state_dict(), weights)
    image = replace(config.image, trunk=f"timm/{TRUNK}", weights=str(weights), frozen=True, size=224)
    return replace(config, image=image, repeats=context.repeats)


def run(context: Context) -> Iterator[Found]:
    """A whole run as a user starts it, data and report included, in a process of its own; seconds of each part."""
    command = [sys.executable, str(context.script)]
    steps = RUN_STEPS
    if context.config.tiny:
        steps = 2
        command += ["--config", str(context.config.settings.resolve()), "--data.root", str(context.data().root)]
    command += ["--train.steps", str(steps)]
    command += ["--name", "gpu_check", "--runs", str(context.work / "runs"), "--data.cache", str(context.work / "new")]
    command += ["--train.accelerator", context.config.accelerator]
    yield {}
    started = time.perf_counter()
    done = subprocess.run(command, cwd=context.work, stdout=sys.stderr)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"train_align.py ended with {done.returncode}; what it said stands above")
    yield described_run(read_result(context.work / "runs" / "gpu_check" / "result.json"), seconds)


def described_run(result: Found, seconds: float) -> Found:
    """Of a process that took `seconds`: its phases, the share that is not training, and what it reached."""
    phases = dict(result["seconds_by_phase"])
    phases["start and end"] = round(seconds - sum(phases.values()), 1)
    return {
        "seconds": round(seconds, 1),
        "seconds_by_phase": phases,
        "share_not_training": round(1 - phases["training"] / seconds, 4),
        "RSUM": result["metrics"].get("RSUM"),
        "steps": result["config"]["train"]["steps"],
    }


PARTS: dict[GpuPart, Callable[[Context], Iterator[Found]]] = {
    "parity": parity,
    "sparse": sparse,
    "step": step,
    "memory": memory,
    "writing": lambda context: writing(context.config.tiny, context.device),
    "evaluation": evaluation,
    "run": run,
    "kernels": kernels,
}
