"""Continued pre-training of a finished run on a domain, mixed with its own set so that it does not forget.

    python scripts/continue_pretrain.py --run runs/flickr8k --data.root data/molecules --terms terms.txt
    python scripts/continue_pretrain.py --run runs/flickr8k --data.root DIR --mix.domain 0.5 --mix.general 0.5
    python scripts/continue_pretrain.py --run runs/flickr8k --data.root DIR --optim.learning_rate 1e-4

Every step minimises 0.7 of the loss on the domain and 0.3 of the loss on the run's own training set, at a learning rate
that begins at 1e-5 and falls to 0.8 of it at each of four stages. `--terms` is a file with a term in each line:
attention is drawn to their tokens, by a strength that each head learns. Writes runs/<name>/: a run like any other; its
result.json has `continued`: both sets before and after, the terms seen and skipped, and the strengths.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning import seed_everything

from alignment import ScheduleConfig
from mm.adapt.continued import ContinuedTask, MixConfig, MixedData
from mm.adapt.planner import trainable
from mm.adapt.sets import DomainData, EvaluationSet, KeepBest, PeakMemory, domain_config, own_set
from mm.adapt.task import freeze
from mm.artifacts.run import load_run, newest_checkpoint, save_weights, write_config
from mm.cli import log_training, run_command
from mm.config import TrainConfig
from mm.data.module import AlignData
from mm.evaluation.result import judge, show
from mm.files import write_json
from mm.model.term_bias import token_sequences
from mm.train.memory import keep_freed_memory
from mm.train.optim import OptimConfig
from mm.train.task import AlignTask
from mm.train.trainer import build_trainer, require_same_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContinueConfig:
    """Continue the training of a finished run on a domain, mixed with its own set."""

    run: str
    """Folder of the finished run that goes on."""
    data: DomainData
    terms: str | None = None
    """File of the domain's terms, one in each line, to whose tokens attention is drawn."""
    name: str = ""
    """The new run is written to <runs>/<name>; by default <run>_<data>_continued."""
    runs: str = "runs"
    seed: int = 0
    resume: bool = False
    """Go on from the newest checkpoint of the run of this name."""
    mix: MixConfig = field(default_factory=MixConfig)
    rates: dict[str, float] = field(default_factory=lambda: {"*.term_strength": 100.0})
    """Factors on the learning rate by name pattern. Strengths start at zero, and would stay there at 1e-5."""
    metric: str = "RSUM"
    """What the domain is evaluated by, and of it the checkpoint that is kept: RSUM, image_to_text/R@1 …"""
    patience: int = 0
    """Evaluations without a better checkpoint after which training stops; 0 never stops early."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-5))
    """The stages of `mix` stand in the place of its warm-up and decay."""
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(kind="joint"))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=200))
    """batch_size is that of either set."""


def continue_pretrain(config: ContinueConfig) -> None:
    started, run = time.perf_counter(), load_run(config.run)
    seed_everything(config.seed, verbose=False)
    folder = Path(config.runs) / (config.name or f"{Path(config.run).name}_{Path(config.data.root).name}_continued")
    own = domain_config(
        run.config,
        config.data,
        runs=config.runs,
        seed=config.seed,
        optim=config.optim,
        schedule=config.schedule,
        train=config.train,
    )
    domain, general = AlignData(own), AlignData(replace(own, data=run.config.data))
    for data in (domain, general):
        data.setup()
    if config.resume:
        require_same_settings(config, folder)
    split = config.data.val
    validation = domain.open(split)
    domain.cache_features(run.model, {config.data.train: domain.train, split: validation})
    if config.mix.general:
        general.cache_features(run.model, {run.config.data.train: general.train})
    sets = {"domain": EvaluationSet(domain, validation, split, config.metric), "general": own_set(run, general)}
    before = {name: judged.score(run) for name, judged in sets.items()}
    terms = add_term_bias(run, domain, Path(config.terms).read_text().splitlines()) if config.terms else {}
    rates = {k: v for k, v in config.rates.items() if terms or not k.endswith("term_strength")}
    task = ContinuedTask(run, replace(own, name=folder.name), config.mix, rates)
    freeze(task, config.train.freeze)
    write_config(config, folder)  # type: ignore[arg-type]  # any settings' dataclass will do
    best = KeepBest(lambda: sets["domain"].score(task), config.train, config.patience)
    memory, trained = PeakMemory(), time.perf_counter()
    trainer = build_trainer(own.train, folder, [best, memory], config.resume)
    trainer.fit(
        task,
        MixedData(domain, general, config.mix),
        weights_only=True,
        ckpt_path=newest_checkpoint(folder) if config.resume else None,
    )
    minutes = (time.perf_counter() - trained) / 60
    save_weights(task, folder)
    result = judge(task, domain, {split: validation}, folder, started)
    after = {"domain": result["metrics"][config.metric], "general": sets["general"].score(task)}
    continued = {
        "run": config.run,
        "mix": asdict(config.mix),
        "trainable": trainable(task),
        "minutes": minutes,
        "peak_memory_gib": memory.bytes / 2**30,
        "before": before,
        "after": after,
        "terms": terms,
        "strengths": task.strengths(),
        "selected": {"metric": config.metric, "on": validation.name, "step": best.step, "value": best.value},
    }
    write_json(folder / "result.json", result | {"continued": continued})
    show(result)
    for name, value in after.items():
        print(f"{name} {sets[name].metric}: {before[name]:.1f} → {value:.1f}")


def add_term_bias(run: AlignTask, data: AlignData, terms: Iterable[str]) -> dict[str, Any]:
    """Draw the run's attention to the terms that its tokenizer and trunk can see; -> those, and the others with why.

    Raises ValueError where it can see none.
    """
    if "text" not in run.model.modalities:
        raise ValueError(f"--terms: the run does not read text, it has {', '.join(run.model.modalities)}")
    vocabulary = getattr(run.model.encoders["text"].trunk, "vocabulary", None)
    sequences, seen, skipped = token_sequences(terms, data.tokenizer, vocabulary)
    for term, reason in skipped.items():
        logger.warning("term %r is skipped: %s", term, reason)
    if not seen:
        raise ValueError(
            f"--terms: none of {len(skipped)} terms can be seen"
            + (f" ({next(iter(skipped))!r}: {next(iter(skipped.values()))})" if skipped else "")
        )
    run.model.add_term_bias(sequences)
    print(f"terms: attention is drawn to {len(seen)}, {len(skipped)} skipped")
    return {"seen": seen, "skipped": skipped}


if __name__ == "__main__":
    log_training()
    keep_freed_memory()
    run_command(ContinueConfig, continue_pretrain)
