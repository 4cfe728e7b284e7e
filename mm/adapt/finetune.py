"""Fine-tuning from a finished run to its report: LoRA, QLoRA or all weights, and what that forgets of the run's set."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning import seed_everything

from encoders.state import weights_digest
from mm.adapt.config import FinetuneConfig, Strategy, adapted_config, described_data, folder_of
from mm.adapt.planner import Estimate, choose, estimate
from mm.adapt.sets import base_run, data_of, domain_set, own_set, scores, scores_after, seen_by, show_scores
from mm.adapt.task import AdaptTask
from mm.adapt.training import train_keeping_best
from mm.artifacts.adapter import AdapterDescription, save_adapter
from mm.artifacts.phases import Phases
from mm.artifacts.run import Run, save_run
from mm.artifacts.seen import save_seen
from mm.compress.ledger import ledger
from mm.compress.lora import attach, coverage, merge_and_unload
from mm.compress.nf4 import dequantize, quantize
from mm.config import encoders_of
from mm.data.module import AlignData
from mm.device import choose_device
from mm.evaluation.result import evaluate_run
from mm.evaluation.table import show
from mm.files import write_json
from mm.hub.pull import folder_of_run
from mm.train.following import require_logger
from mm.train.freeze import freeze, require_fitting
from mm.train.identity import Identity, begin, held, samples_digest
from mm.train.memory import keep_freed_memory
from mm.train.task import AlignTask


def finetune(config: FinetuneConfig) -> None:
    """Write runs/<name>/: a run like any other, whose result.json has `adaptation`, with adapter/ and coverage.txt.

    Raises ValueError on settings that fit neither the run nor the data, FloatingPointError on divergence.
    """
    device = choose_device(config.train.accelerator)
    require_logger(config.train.logger)
    config = replace(config, run=str(folder_of_run(config.run, Path(config.runs))))
    keep_freed_memory()
    run = base_run(config, device)
    seed_everything(config.seed, verbose=False)
    adapted = adapted_config(run.config, config)
    data = data_of(adapted)
    data.setup()
    print(described_data(adapted, len(data.train)))
    strategy = choose(adapted.data.limit_images or len(data.train)) if config.strategy == "auto" else config.strategy
    folder = folder_of(config, strategy)
    with held(folder):
        _finetune(config, strategy, run, data, folder)


def _finetune(config: FinetuneConfig, strategy: Strategy, run: Run, data: AlignData, folder: Path) -> None:
    phases = Phases()
    base = run.fingerprint()
    digests = {"base weights": weights_digest(run.model), "training samples": samples_digest(data.train)}
    domain = domain_set(run, data, config.metric)
    sets = {"domain": domain}
    if config.general:
        sets["general"] = own_set(run, data_of(run.config))
    before = scores(sets, run)
    adapted = adapted_config(run.config, config)
    adapted = replace(adapted, name=folder.name)
    task = AdaptTask(replace(run, config=adapted), adapters=strategy != "full")
    require_fitting(task, task.config.optim.rates, "optim.rates")
    sizes, covered = prepare(task, strategy, config)
    planned = plan(task, data, strategy)
    adaptation: dict[str, Any] = {
        "strategy": strategy,
        "run": config.run,
        "base": base.digest,
        "targets": list(config.lora.targets) if task.adapters else [],
        "trainable": task.trainable(),
        "estimate": asdict(planned),
        "ledger": sizes,
        "before": before,
    }
    begin(folder, Identity.of(config, digests), config, config.resume)
    seen = seen_by(config, run, adapted, domain)
    save_seen(seen, folder)
    if task.adapters:
        listed = folder / "coverage.txt"
        listed.write_text(f"{covered}\n")
        print(f"every parameter, adapted or not: {listed}")
    phases.end("preparation")
    training = train_keeping_best(config, task, data, domain, folder)
    phases.end("training")
    adaptation |= training.described(domain)
    if task.adapters:
        skipped = frozen_trunks(task) if strategy == "qlora" else None
        save_adapter(task.model, AdapterDescription(config.lora, base, skipped), folder / "adapter")
        save_seen(seen, folder / "adapter")
        merge_and_unload(task.model)
        dequantize(task.model)
    save_run(task.run, folder)
    result = evaluate_run(task.run, data, {domain.split: domain.dataset}, folder, phases)
    adaptation["after"] = scores_after(sets, task.run, result)
    write_json(folder / "result.json", result | {"adaptation": adaptation})
    show(result)
    show_scores(sets, before, adaptation["after"])


def prepare(task: AdaptTask, strategy: Strategy, config: FinetuneConfig) -> tuple[list[dict[str, Any]], str]:
    """Freeze, pack and adapt as the strategy says.

    Returns:
        the size ledger, and of adapters a line for every parameter: what is adapted, and what is not.

    Raises:
        ValueError: a target, a rank or a frozen name fits nothing.
    """
    lines = ""
    if strategy != "full":
        coverage(task.model, config.lora)  # before anything is packed: a wrong target is known at once
        if strategy == "qlora":
            quantize(task.model, skip=frozen_trunks(task))
        found = attach(task.model, config.lora)
        task.loss.requires_grad_(False)
        lines = "\n".join(found.lines())
        print(found.summary())
    freeze(task, config.train.freeze)
    sizes = []
    for row in ledger(task.model):
        print(f"  {row.group:<20} {row.weights:>12,} weights {row.bits:>6.2f} bits each")
        sizes.append(asdict(row) | {"bits": round(row.bits, 3)})
    return sizes, lines


def plan(task: AdaptTask, data: AlignData, strategy: Strategy) -> Estimate:
    """Try a step on the first samples, and print what the run will cost."""
    train = task.config.train
    images = len(data.train)
    rows = min(train.batch_size, images)
    batch = data.train_batch(list(range(rows)))
    planned = estimate(task, batch)
    print(planned.line(strategy, images, train.steps))
    return planned


def frozen_trunks(task: AlignTask) -> tuple[str, ...]:
    """What is never packed: the cached features are theirs."""
    frozen = [modality for modality, encoder in encoders_of(task.config).items() if encoder.frozen]
    return tuple(f"encoders.{modality}.trunk." for modality in frozen)
