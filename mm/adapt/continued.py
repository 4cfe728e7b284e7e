"""Continued pre-training: every step reads a batch of the domain and one of what the run already knows."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import torch
from lightning import LightningDataModule, seed_everything
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from encoders.state import weights_digest
from mm.adapt.config import ContinueConfig, MixConfig, adapted_config, described_data, folder_of
from mm.adapt.sets import base_run, data_of, domain_set, own_set, scores, scores_after, seen_by, show_scores
from mm.adapt.task import AdaptTask
from mm.adapt.terms import add_term_bias, read_terms, term_biases, without_term_rates
from mm.adapt.training import train_keeping_best
from mm.artifacts.phases import Phases
from mm.artifacts.run import Run, save_run
from mm.artifacts.seen import save_seen
from mm.batch import Batch
from mm.data.module import AlignData
from mm.device import choose_device
from mm.evaluation.result import evaluate_run
from mm.evaluation.table import show
from mm.files import write_json
from mm.hub.pull import folder_of_run
from mm.train.finite import check_finite
from mm.train.following import require_logger
from mm.train.freeze import freeze, require_fitting
from mm.train.identity import Identity, begin, digest_of, held, samples_digest
from mm.train.memory import keep_freed_memory


class ContinuedTask(AdaptTask):
    """All weights of `run` go on training; a step's batch is a dict of the sets' batches, by the names of MixConfig."""

    def __init__(self, run: Run, mix: MixConfig) -> None:
        super().__init__(run, adapters=False)
        self.mix = mix

    def on_before_batch_transfer(self, batch: dict[str, Batch], index: int) -> dict[str, Batch]:  # type: ignore[override]
        checked = super().on_before_batch_transfer
        return {name: checked(part, index) for name, part in batch.items()}

    def training_step(self, batch: dict[str, Batch], batch_index: int) -> Tensor:  # type: ignore[override]  # two sets
        self.seed_step()
        total = torch.zeros((), device=self.device)
        loads = []
        for name, part in batch.items():
            output = self.read(part)
            terms, load = self.losses(output, part)
            check_finite(terms, self.global_step)
            weight = getattr(self.mix, name)
            total = total + weight * terms.total
            loads.append(load)
            self.log(f"train/{name}", terms.total.detach(), prog_bar=True)
            for term, value in terms.terms.items():
                self.log(f"train/{name}/{term}", value.detach())
        self.rebalance(torch.stack(loads).sum(0))
        self.log("learning_rate", self.current_rate)
        return total

    def learning_rate_factor(self, progress: float) -> float:
        """`progress` is what will be done after the step: the step that ends a stage belongs to it."""
        stages_begun = math.ceil(progress * self.mix.stages - 1e-9)
        return self.mix.stage_factor ** max(0, stages_begun - 1)


class MixedData(LightningDataModule):
    """A batch of each set at every step, in an order that resumes; batches of the general set only where it counts."""

    def __init__(self, domain: AlignData, general: AlignData, mix: MixConfig) -> None:
        super().__init__()
        self.sets = {"domain": domain}
        if mix.general:
            self.sets["general"] = general

    def train_dataloader(self) -> CombinedLoader:
        loaders = {}
        for name, data in self.sets.items():
            data.trainer = self.trainer
            loaders[name] = data.train_dataloader()
        return CombinedLoader(loaders, "min_size")


def continue_pretrain(config: ContinueConfig) -> None:
    """Write runs/<name>/: a run like any other, whose result.json has `continued`.

    Raises ValueError on settings that fit neither the run nor the data, FloatingPointError on divergence.
    """
    device = choose_device(config.train.accelerator)
    require_logger(config.train.logger)
    config = replace(config, run=str(folder_of_run(config.run, Path(config.runs))))
    keep_freed_memory()
    folder = folder_of(config, "continued")
    with held(folder):
        _continue_pretrain(config, device, folder)


def _continue_pretrain(config: ContinueConfig, device: torch.device, folder: Path) -> None:
    phases = Phases()
    run = base_run(config, device)
    seed_everything(config.seed, verbose=False)
    adapted = adapted_config(run.config, config)
    data = data_of(adapted)
    general = data_of(replace(adapted, data=run.config.data, image=run.config.image))
    data.setup()
    print(described_data(adapted, len(data.train)))
    general.setup()
    digests = {
        "base weights": weights_digest(run.model),
        "training samples": samples_digest(data.train),
        "general samples": samples_digest(general.train),
    }
    domain = domain_set(run, data, config.metric)
    if config.mix.general:
        general.cache_features(run.model.encoders, {general.config.train: general.train})
    sets = {"domain": domain, "general": own_set(run, general)}
    before = scores(sets, run)
    terms: dict[str, object] = {}
    if config.terms:
        asked = read_terms(config.terms)
        digests["terms"] = digest_of(asked)
        terms = add_term_bias(run.model, data.tokenizer, asked)
    else:
        adapted = without_term_rates(adapted)
    adapted = replace(adapted, name=folder.name)
    task = ContinuedTask(replace(run, config=adapted), config.mix)
    require_fitting(task, task.config.optim.rates, "optim.rates")
    freeze(task, config.train.freeze)
    begin(folder, Identity.of(config, digests), config, config.resume)
    save_seen(seen_by(config, run, adapted, domain), folder)
    mixed = MixedData(data, general, config.mix)
    phases.end("preparation")
    training = train_keeping_best(config, task, mixed, domain, folder)
    phases.end("training")
    save_run(task.run, folder)
    result = evaluate_run(task.run, data, {domain.split: domain.dataset}, folder, phases)
    after = scores_after(sets, task.run, result)
    continued = {
        "run": config.run,
        "mix": asdict(config.mix),
        "trainable": task.trainable(),
        "before": before,
        "after": after,
        "terms": terms,
        "term_biases": term_biases(task.model),
    }
    continued |= training.described(domain)
    write_json(folder / "result.json", result | {"continued": continued})
    show(result)
    show_scores(sets, before, after)
