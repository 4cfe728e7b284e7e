"""Molecules that a run writes, freely and of the properties of a held-out split, scored beside an n-gram model's."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table

from encoders.tokenizer import Tokenizer
from eval.intervals import Bootstrap
from eval.molecules import MEASURES, MoleculeScores, Wanted, WrittenMolecule, cell, score_molecules
from eval.ngram import END, NGram
from kernels.errors import UserError
from kernels.ranges import check_ranges
from mm.artifacts.environment import commit, hardware
from mm.data.dataset import CaptionDataset
from mm.data.domains.chemistry import SEPARATOR, asked, asked_in, prefix_of, spelled_in, unspell
from mm.data.module import captions_of
from mm.evaluation.models import FinishedRun
from mm.files import write_json
from mm.hub.pull import RUNS, folder_of_run
from mm.infer.decoding import Decoding, choose, drawn_by
from mm.infer.writing import TextWriter
from mm.model.writer import Writer
from mm.optional import require

RINGS = re.compile(r"no ring|\d+ rings?|\d+ aromatic")
"""The parts of what is asked that are no functional group."""
SHOWN = 10
"""Of what was asked, examples in the result."""


@dataclass(frozen=True)
class EvalMolecules:
    """Which run writes molecules, and how."""

    run: str
    """Folder of a finished run that was trained with loss.continuation on molecules that prepare_domain.py wrote with
    adapter.joined=true, or hf://org/name[@revision]."""
    root: str | None = None
    """Folder of the split whose properties are asked for; without it, the run's own data."""
    split: str = "val"
    """That split."""
    molecules: Annotated[int, "[1, inf)"] = 1000
    """Molecules that are written freely, and at most as many of the split's properties."""
    decoding: Decoding = field(default_factory=lambda: Decoding(max_tokens=128, temperature=1.0))
    """How tokens are drawn."""
    order: Annotated[int, "[1, inf)"] = 5
    """Of the n-gram model that writes beside the run: n."""
    samples: Annotated[int, "[1, inf)"] = 1000
    """Bootstrap samples of the intervals."""
    json: Path | None = None
    """Where to write the result; by default <run>/molecules-<dataset>-<split>.json."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.decoding.temperature:
            raise UserError("molecules are drawn: decoding.temperature must be above 0, or all of them would be one")


@dataclass(frozen=True)
class TrainedMolecules:
    """What a run was trained on.

    Args:
        texts: in which a molecule is written.
        smiles: of the molecules, canonical.
    """

    texts: list[str]
    smiles: frozenset[str]


def eval_molecules(config: EvalMolecules) -> Path:
    """Write molecules, score them, print a table, and write the result.

    Returns:
        the file of the result.

    Raises:
        ValueError: the run does not write, its training texts hold no molecule, or the split no properties.
    """
    started = time.perf_counter()
    folder = folder_of_run(config.run, RUNS)
    run = FinishedRun(folder, config.root)
    Writer(run.run.model)  # Whoever does not write is told so before anything is read.
    dataset = run.open(config.split)
    wanted = wanted_of(dataset)[: config.molecules]
    trained = trained_molecules(run)
    writer = TextWriter(run.run.model, run.data.tokenizer)
    ngram = NGram((text.split() for text in trained.texts), config.order)
    writers: dict[str, Callable[[Sequence[str]], list[str]]] = {
        "run": lambda prefixes: writer.write(prefixes, None, config.decoding),
        "ngram": lambda prefixes: continued(ngram, prefixes, config.decoding),
    }
    bootstrap = Bootstrap(config.samples)
    scores: dict[str, dict[str, Any]] = {"free": {}, "asked": {}}
    examples = {}
    for name, write in writers.items():
        free = read_molecules(write([prefix_of()] * config.molecules))
        of_asked = read_molecules(write([prefix_of(text) for text in wanted]))
        parts = [parts_of(text) for text in wanted]
        scores["free"][name] = rounded(score_molecules(free, trained.smiles, None, bootstrap))
        scores["asked"][name] = rounded(score_molecules(of_asked, trained.smiles, parts, bootstrap))
        examples[name] = [shown(*pair) for pair in zip(wanted[:SHOWN], of_asked, strict=False)]
    result = {
        "evaluated": config.run,
        "dataset": dataset.name.partition("/")[0],
        "split": dataset.name.partition("/")[2],
        "molecules": {"free": config.molecules, "asked": len(wanted)},
        "decoding": asdict(config.decoding),
        "order": config.order,
        "trained_on": run.training_set,
        "training": {"molecules": len(trained.smiles), **cut_by(writer.tokenizer, trained.texts)},
        "scores": scores,
        "examples": examples,
        "commit": commit(),
        "hardware": hardware(run.device),
        "seconds": round(time.perf_counter() - started, 1),
    }
    path = config.json or folder / f"molecules-{dataset.name.replace('/', '-')}.json"
    write_json(path, result)
    show(result)
    print(f"result: {path}")
    return path


def wanted_of(dataset: CaptionDataset) -> list[str]:
    """What is asked of each molecule of a split, as its first description says it.

    Raises:
        ValueError: a sample has no description.
    """
    found = []
    for number, captions in enumerate(dataset.captions):
        wanted = next(filter(None, map(asked_in, captions)), None)
        if wanted is None:
            raise UserError(f"{dataset.name}: sample {number} has no text of a molecule's properties")
        found.append(wanted)
    return found


def trained_molecules(run: FinishedRun) -> TrainedMolecules:
    """The molecules of a run's training set, and the texts that spell them.

    Raises:
        ValueError: the set cannot be read, or no text spells a molecule.
    """
    try:
        dataset = run.training_data().open(run.trained.train)
    except OSError as error:
        raise UserError(f"the training molecules, beside which novelty is counted, cannot be read ({error})") from error
    texts = [text for text in captions_of(dataset) if spelled_in(text) is not None]
    if not texts:
        missing = f"{dataset.name} has no text in which a molecule follows {SEPARATOR!r}"
        raise UserError(f"{missing}: prepare it with --adapter.joined true")
    found = read_molecules(texts)
    return TrainedMolecules(texts, frozenset(molecule.smiles for molecule in found if molecule is not None))


def read_molecules(texts: Sequence[str]) -> list[WrittenMolecule | None]:
    """What each text spells behind SEPARATOR; None where that is no molecule."""
    chemistry = require("rdkit.Chem")
    found: list[WrittenMolecule | None] = []
    with require("rdkit.rdBase").BlockLogs():
        for text in texts:
            try:
                molecule = chemistry.MolFromSmiles(unspell(spelled_in(text) or ""))
            except UserError:  # It is no spelling at all: as little a molecule as a SMILES that RDKit refuses.
                molecule = None
            if molecule is None or not molecule.GetNumAtoms():
                found.append(None)
            else:
                found.append(WrittenMolecule(chemistry.MolToSmiles(molecule), parts_of(asked(molecule))))
    return found


def parts_of(wanted: str) -> Wanted:
    """What `asked` gives, apart: its rings, and its functional groups."""
    parts = wanted.split(", ")
    rings = [part for part in parts if RINGS.fullmatch(part)]
    return Wanted(", ".join(rings), frozenset(parts) - frozenset(rings))


def continued(model: NGram, prefixes: Sequence[str], decoding: Decoding) -> list[str]:
    """A text behind each prefix by an n-gram model, drawn as a run draws it; prefixes included."""
    texts = []
    for number, prefix in enumerate(prefixes):
        draws = drawn_by(decoding, number)
        words = prefix.split()
        longest = len(words) + decoding.max_tokens
        while len(words) < longest:
            logits = torch.from_numpy(model.probabilities(words)).log()[None]
            (place,) = choose(logits, decoding, [draws])
            if model.words[place] in (END, decoding.stop):
                break
            words.append(model.words[place])
        texts.append(" ".join(words))
    return texts


def cut_by(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, int]:
    """How many texts there are, and how many of them are longer than what the model reads: their ends were cut off."""
    room = tokenizer.max_tokens - 2
    cut = sum(len(tokenizer.word_ids(text)) > room for text in texts)
    return {"texts": len(texts), "cut": cut}


def shown(wanted: str, found: WrittenMolecule | None) -> dict[str, str | None]:
    """An example: what was asked, and what was written of it."""
    return {"asked": wanted, "written": found.smiles if found is not None else None}


def rounded(scores: MoleculeScores) -> dict[str, Any]:
    """Scores to two digits."""
    return {
        "values": {name: round(value, 2) for name, value in scores.values.items()},
        "intervals": {name: [round(end, 2) for end in ends] for name, ends in scores.intervals.items()},
    }


def show(result: Mapping[str, Any]) -> None:
    """Print the scores, and what of the training texts was cut."""
    table = Table(title=f"molecules of {result['evaluated']}, in %")
    for column in ("kind", "by", *MEASURES):
        table.add_column(column, justify="left" if column in ("kind", "by") else "right")
    for kind, scores in result["scores"].items():
        for name, of_writer in scores.items():
            count = f"{kind}, {result['molecules'][kind]:,}"
            table.add_row(count, name, *(cell(of_writer, measure) for measure in MEASURES))
    console = Console()
    console.print(table)
    training = result["training"]
    console.print(
        f"trained on {training['molecules']:,} molecules in {training['texts']:,} texts, of which {training['cut']:,}"
        " are longer than the model's context and were cut",
        highlight=False,
    )
