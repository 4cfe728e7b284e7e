"""A run writes molecules that are scored beside an n-gram model's."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders.tokenizer import Tokenizer
from eval.molecules import Wanted
from eval.ngram import NGram
from mm.artifacts.run import build_run, save_run
from mm.artifacts.seen import save_seen
from mm.config import AlignConfig
from mm.data.collection import Collection
from mm.data.config import DataConfig
from mm.data.domains.chemistry import ChemistryLoader, spell
from mm.data.module import AlignData
from mm.data.prepare.domain import write_domain
from mm.evaluation.molecules import (
    EvalMolecules,
    continued,
    cut_by,
    eval_molecules,
    parts_of,
    read_molecules,
)
from mm.infer.decoding import Decoding

pytest.importorskip("rdkit.Chem")
SMILES = ["CCO", "CCCO", "CCCCO", "CCCCCO", "c1ccccc1C", "c1ccccc1CC", "C1CCCCC1O", "CC(=O)O", "CCC(=O)O", "COC"]


@pytest.fixture(scope="module")
def kept() -> dict[bool, Path]:
    """Folders of runs by whether their molecules are joined to what is asked: the first test leaves them here."""
    return {}


@pytest.fixture
def run(
    kept: dict[bool, Path],
    tiny: AlignConfig,
    open_data: Callable[[AlignConfig], AlignData],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """run(joined) -> the folder of an untrained run on a few molecules."""

    def build(joined: bool = True) -> Path:
        if joined not in kept:
            place = tmp_path_factory.mktemp("molecules")
            (place / "few.smi").write_text("\n".join(SMILES))
            adapter = ChemistryLoader(place / "few.smi", size=32, joined=joined)
            write_domain(adapter, place / "data", "coco", held_out=0.4, seed=0, limit=None)
            model = replace(tiny.model, generate=True, modalities=("image", "text"))
            text = replace(tiny.text, max_tokens=20)
            config = replace(tiny, model=model, text=text, data=DataConfig(root=str(place / "data")))
            data = open_data(config)
            torch.manual_seed(0)
            save_run(build_run(config, data.vocabulary), place / "run")
            save_seen([Collection.of(config.data, [data.open("train"), data.open("val")])], place / "run")
            kept[joined] = place / "run"
        return kept[joined]

    return build


def test_molecules_are_written_and_scored(run: Callable[..., Path], tmp_path: Path) -> None:
    place = tmp_path / "out.json"
    decoding = Decoding(max_tokens=8, temperature=1.0)
    assert eval_molecules(EvalMolecules(str(run()), molecules=6, decoding=decoding, samples=20, json=place)) == place
    result = json.loads(place.read_text())
    assert result["molecules"]["free"] == 6 and 0 < result["molecules"]["asked"] < len(SMILES)
    assert set(result["scores"]["free"]) == set(result["scores"]["asked"]) == {"run", "ngram"}
    assert set(result["scores"]["asked"]["run"]["values"]) == {"valid", "unique", "novel", "rings", "groups", "both"}
    assert result["training"]["molecules"] == len(SMILES) - result["molecules"]["asked"]
    # The tiny model reads a few tokens only: what is longer is counted.
    assert 0 < result["training"]["cut"] <= result["training"]["texts"]
    # Of so few texts the n-gram model writes some right; what has no training has no chance.
    assert result["scores"]["free"]["ngram"]["values"]["valid"] > result["scores"]["free"]["run"]["values"]["valid"]


def test_what_holds_no_molecules_is_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no text in which a molecule follows ':': prepare it with --adapter\.joined"):
        eval_molecules(EvalMolecules(str(run(False)), json=tmp_path / "out.json"))
    with pytest.raises(ValueError, match=r"decoding\.temperature must be above 0"):
        EvalMolecules("runs/x", decoding=Decoding())


def test_what_is_written_is_read_back() -> None:
    texts = [f"1 ring, 1 aromatic, phenol : {spell('Oc1ccccc1')}", ": c c o", ": c ( c", ": zz", ":", "c c o"]
    phenol, ethanol, *none = read_molecules(texts)
    assert phenol is not None and phenol.smiles == "Oc1ccccc1"
    assert phenol.has == parts_of("1 ring, 1 aromatic, phenol") == Wanted("1 ring, 1 aromatic", frozenset({"phenol"}))
    assert ethanol is not None and ethanol.smiles == "CCO" and none == [None] * 4


def test_the_baseline_goes_on_from_what_is_asked() -> None:
    model = NGram([text.split() for text in ("no ring : c o", "1 ring : qc qc")] * 20, order=4)
    decoding = Decoding(max_tokens=3, temperature=0.2)
    assert continued(model, ["no ring :", "1 ring :"], decoding) == ["no ring : c o", "1 ring : qc qc"]
    drawn = continued(model, [":"] * 20, Decoding(max_tokens=1, temperature=2.0))
    assert len(set(drawn)) > 1 and drawn == continued(model, [":"] * 20, Decoding(max_tokens=1, temperature=2.0))


def test_texts_that_fill_the_context_are_whole() -> None:
    tokenizer = Tokenizer("scratch", 8)
    assert cut_by(tokenizer, ["c c c c c c", "c c c c c c c"]) == {"texts": 2, "cut": 1}
    assert [len(tokenizer.word_ids(text)) for text in ("c c c c c c",)] == [6]
