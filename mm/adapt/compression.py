"""`mm-align compress`: a finished run in fewer bits or with fewer experts, as a run of its own."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from encoders.state import weights_digest
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.adapt.pruning import pruned
from mm.adapt.sets import data_of
from mm.adapt.task import AdaptTask
from mm.artifacts.phases import Phases
from mm.artifacts.run import WEIGHTS, Run, load_run, quantize_run, save_run
from mm.artifacts.seen import load_seen, save_seen
from mm.compress.integers import Packed
from mm.compress.ledger import LedgerRow, file_ledger, ledger_table
from mm.compress.quantize import HALF, WHOLE, QATConfig, convert, prepare_qat
from mm.config import AlignConfig
from mm.data.module import AlignData
from mm.device import choose_device
from mm.evaluation.result import evaluate_run
from mm.evaluation.table import show
from mm.files import write_json
from mm.train.freeze import freeze
from mm.train.identity import Identity, begin, held, samples_digest
from mm.train.memory import keep_freed_memory
from mm.train.trainer import build_trainer, fit


@dataclass(frozen=True)
class CompressConfig:
    """Store a finished run in fewer bits, or with fewer experts."""

    run: str
    """Folder of the finished run."""
    bits: Literal[4, 8, 16, 32] = 8
    """Of linear layers, experts and decoders; other convolutions, tables and positions have at least eight. 16 is
    bfloat16, 32 leaves them as they are."""
    prune: tuple[str, ...] = ()
    """Modalities that are kept, such as [image,text]: experts that receive nothing from any of them go, first."""
    prune_share: Annotated[float, "[0, 1)"] = 0.0
    """Of each kept modality's assignments in a layer, how much the experts that go may have received together."""
    activation_bits: Literal[8, 32] | None = None
    """Of what linear layers read, token by token; 32 leaves it as it is. By default 8, beside 16-bit weights 32."""
    qat: Annotated[int, "[0, inf)"] = 0
    """Steps of quantisation-aware training on the run's own set; 0 rounds the weights as they are."""
    learning_rate: Annotated[float, "(0, inf)"] = 3e-5
    """Of these steps, with the run's own warm-up and decay."""
    seed: Annotated[int, "[0, 4294967295]"] = 0
    """Of these steps' samples and draws."""
    name: str = ""
    """The compressed run is written to <runs>/<name>; by default <run>_int<bits>, <run>_int<bits>_qat,
    <run>_bf16, or these behind <run>_pruned."""
    runs: str = "runs"
    """Folder of all runs."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.qat and self.bits >= HALF:
            raise UserError(f"qat trains on a grid of integers: bits={self.bits} has none")
        if self.bits == WHOLE and not self.prune:
            raise UserError("bits=32 leaves a run as it is: name the modalities to prune for, or fewer bits")
        if self.prune_share and not self.prune:
            raise UserError("prune_share is of the modalities that prune names: it names none")


class QuantizedTask(AdaptTask):
    """A finished run that trains on as at its end: its schedule has run its course."""

    @property
    def progress(self) -> float:
        return 1.0


def folder_of(config: CompressConfig) -> Path:
    """Where the compressed run is written."""
    trained = "_qat" if config.qat else ""
    kind = {HALF: "_bf16", WHOLE: ""}.get(config.bits, f"_int{config.bits}{trained}")
    left = "_pruned" if config.prune else ""
    return Path(config.runs) / (config.name or f"{Path(config.run).name}{left}{kind}")


def bits_of(config: CompressConfig) -> QATConfig | None:
    """The bits of weights and activations; None where they stay as they are."""
    if config.bits == WHOLE:
        return None
    activation_bits = config.activation_bits
    if activation_bits is None:
        activation_bits = 32 if config.bits == HALF else 8
    return QATConfig(activation_bits, config.bits)


def compress(config: CompressConfig) -> None:
    """Write <runs>/<name>/, which is evaluated, served and pushed like any other run.

    Args:
        config: which run, and how.

    Raises:
        UserError: the run is not there or is compressed already, or its own set has gone.
        FloatingPointError: training diverged.
    """
    device = choose_device()
    keep_freed_memory()
    with held(folder_of(config)):
        _compress(config, device)


def _compress(config: CompressConfig, device: torch.device) -> None:
    phases = Phases()
    base = Path(config.run)
    folder = folder_of(config)
    run = load_run(base).to(device)
    if run.compression is not None:
        raise UserError(
            f"{base} is compressed already, to {run.compression.weight_bits} bits: name the run it came from"
        )
    run.config = compressed_config(run.config, config)
    data = data_of(run.config)
    data.setup()
    val = run.config.data.val
    dataset = data.open(val)
    if config.qat or config.prune:
        data.cache_features(run.model.encoders, {run.config.data.train: data.train})
    digests = {"base weights": weights_digest(run.model), "training samples": samples_digest(data.train)}
    phases.end("preparation")
    if config.prune:
        run = pruned(run, data, config.prune, config.prune_share)
        phases.end("pruning")
    begin(folder, Identity.of(config, digests), config, resume=False)
    save_seen(load_seen(base, run.config.data), folder)
    bits = bits_of(config)
    if config.qat:
        run.packed = train_quantized(run, data, config)
        run.compression = bits
        phases.end("training")
    elif bits is not None:
        quantize_run(run, bits)
    save_run(run, folder)
    # What is evaluated are the features of the trunk that is stored, not of the one that was rounded.
    data.cache_features(run.model.encoders, {val: dataset})
    result = evaluate_run(run, data, {val: dataset}, folder, phases)
    rows = file_ledger(folder / WEIGHTS)
    write_json(folder / "result.json", result | {"compressed": described(config, run, rows)})
    show(result)
    ledger_table(rows)
    whole = base / WEIGHTS
    if whole.is_file():
        print(f"{rows[-1].stored / whole.stat().st_size:.3f} of {whole}")


def compressed_config(own: AlignConfig, config: CompressConfig) -> AlignConfig:
    """A run's own settings under its new name; where it trains on for a few steps, on one device, those of that."""
    named = replace(own, name=folder_of(config).name, runs=config.runs, resume=False)
    if not config.qat:
        return named
    train = replace(own.train, steps=config.qat, evaluate_every=0, ema=0.0, devices=1, num_nodes=1, strategy="auto")
    return replace(
        named,
        seed=config.seed,
        optim=replace(own.optim, learning_rate=config.learning_rate),
        train=train,
    )


def train_quantized(run: Run, data: AlignData, config: CompressConfig) -> dict[str, Packed]:
    """Train what the recipe trains, on the grid that it will be stored on.

    Args:
        run: changed in place; its weights lie on their grids then.
        data: its own set, which has been set up.
        config: bits and steps.

    Returns:
        the trained weights in integers, by name.
    """
    bits = bits_of(config)
    assert bits is not None  # CompressConfig
    prepare_qat(run.model, bits)
    task = QuantizedTask(run, adapters=False)
    freeze(task, run.config.train.freeze)
    trainer = build_trainer(run.config.train, run.device, folder_of(config), [], resume=False)
    fit(trainer, task, data, folder_of(config), resume=False)
    return convert(run.model)


def described(config: CompressConfig, run: Run, rows: list[LedgerRow]) -> dict[str, Any]:
    """For result.json."""
    bits = run.compression
    return {
        "run": config.run,
        "qat": config.qat,
        **({} if bits is None else asdict(bits)),
        "prune": list(config.prune),
        "experts": run.config.model.backbone.moe.num_experts,
        "ledger": [asdict(row) for row in rows],
    }
