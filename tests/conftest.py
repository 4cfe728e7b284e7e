"""A model small enough for a test, and batches for it.

Triton's interpreter, which stands in for a GPU, must be asked for before anything imports Triton, and the
packages below do.
"""

import importlib
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, settings

# How fast a busy machine draws examples says nothing of the code.
settings.register_profile("mm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mm")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
if os.environ.get("MM_ALL_EXTRAS"):  # make test-extras: a package that is missing fails the test instead of skipping it
    pytest.importorskip = lambda name, *_, **__: importlib.import_module(name)

from alignment import ScheduleConfig
from encoders import AudioConfig, ImageConfig, TextConfig
from encoders.quantizer import QuantizerConfig
from encoders.tokenizer import Tokenizer, observed_vocabulary
from encoders.vqvae import BottleneckConfig
from mm.artifacts.run import Run, build_run
from mm.batch import Batch
from mm.config import AlignConfig, EvalConfig, TrainConfig
from mm.data.config import DataConfig
from mm.model.backbone import BackboneConfig
from mm.model.moe import MoEConfig
from mm.model.multimodal import ModelConfig
from mm.train.task import AlignTask

torch.set_num_threads(1)

CAPTIONS = ("red circle", "two blue squares left of a star", "one small green heart", "stripes", "a circle above a dot")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A benchmark sets other numbers; a process that is forked from one with more threads waits for them for ever."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> AlignConfig:
    """All three modalities from scratch: width 32, 2 layers, 8 experts of which 2 are active."""
    bottleneck = BottleneckConfig(quantizer=QuantizerConfig(num_codes=16, width=8), reconstruct=2)
    backbone = BackboneConfig(width=32, layers=2, heads=2, moe=MoEConfig(num_experts=8, top_k=2, hidden=8, shared=16))
    return AlignConfig(
        data=DataConfig(),
        model=ModelConfig(embedding=16, token_embedding=8, backbone=backbone),
        image=ImageConfig(size=32, width=16, depth=1),
        audio=AudioConfig(seconds=0.32, width=16, depth=1),
        text=TextConfig(width=16, depth=1, heads=2, max_tokens=12),
        bottleneck=bottleneck,
        schedule=ScheduleConfig(kind="progressive"),
        train=TrainConfig(steps=10, batch_size=8, precision="fp32", accelerator="cpu"),
        eval=EvalConfig(batch_size=8, rerank=2),
    )


@pytest.fixture
def vocabulary() -> torch.Tensor:
    return observed_vocabulary(Tokenizer("scratch", 12), CAPTIONS)


@pytest.fixture
def tiny_run(tiny: AlignConfig, vocabulary: torch.Tensor) -> Callable[..., Run]:
    """tiny_run(**changes of the config) -> Run, the same weights every time."""

    def build(**changes: object) -> Run:
        torch.manual_seed(0)
        return build_run(replace(tiny, **changes), vocabulary)  # type: ignore[arg-type]

    return build


@pytest.fixture
def tiny_task(tiny_run: Callable[..., Run]) -> Callable[..., AlignTask]:
    """tiny_task(**changes of the config) -> AlignTask of `tiny_run`."""
    return lambda **changes: AlignTask(tiny_run(**changes))


@pytest.fixture
def tiny_batch(tiny: AlignConfig) -> Callable[..., Batch]:
    """tiny_batch(rows=4, seed=0) -> a Batch of noise images, noise audio clips of growing length, and captions."""

    def make(rows: int = 4, seed: int = 0) -> Batch:
        random = torch.Generator().manual_seed(seed)
        samples = int(tiny.audio.seconds * tiny.audio.sample_rate)
        ids, mask = Tokenizer("scratch", tiny.text.max_tokens)([CAPTIONS[i % len(CAPTIONS)] for i in range(rows)])
        lengths = torch.linspace(samples // 2, samples, rows).long()
        real = torch.arange(samples) < lengths[:, None]
        batch = Batch(torch.arange(rows))
        batch.put("image", torch.randint(0, 256, (rows, 3, 32, 32), dtype=torch.uint8, generator=random))
        batch.put("audio", torch.randn(rows, samples, generator=random).mul(0.1) * real, real)
        batch.put("text", ids, mask)
        return batch

    return make
