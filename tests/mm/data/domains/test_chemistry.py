"""Molecules: read, spelled, described, drawn and held out by scaffold."""

from collections.abc import Callable
from pathlib import Path

import pytest

Chem = pytest.importorskip("rdkit.Chem")

from mm.data.domains.chemistry import ChemistryLoader, properties, spell, tokens  # noqa: E402 - after the skip

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
SMILES = [ASPIRIN, "c1ccccc1", "C1CCCCC1", "c1ccccc1C", "c1ccccc1CC", "C1CCCCC1C", "CCO", "c1ccc2ccccc2c1"]


@pytest.fixture
def loader(tmp_path: Path) -> Callable[..., ChemistryLoader]:
    def build(*lines: str, **options: int) -> ChemistryLoader:
        path = tmp_path / "molecules.smi"
        path.write_text("\n".join(lines or SMILES) + "\n")
        return ChemistryLoader(path, **options)

    return build


def test_tokens_are_atoms_bonds_and_rings() -> None:
    assert tokens("ClCCBr") == ["Cl", "C", "C", "Br"]
    assert tokens("C[N+](=O)c1nc[nH]c1") == ["C", "[N+]", "(", "=", "O", ")", "c", "1", "n", "c", "[nH]", "c", "1"]
    with pytest.raises(ValueError, match="'C!C' holds characters"):
        tokens("C!C")


def test_spelling_survives_a_tokenizer_that_lowers_letters() -> None:
    assert spell("c1nCl") == "qc 1 qn Cl"
    for one, other in (("c1ccccc1", "C1CCCCC1"), ("[nH]", "[NH]"), ("[s+]", "[As+]"), ("[13c]", "[13C]")):
        assert spell(one).lower() != spell(other).lower()


def test_a_row_is_a_drawing_and_a_text_of_computed_properties(loader: Callable[..., ChemistryLoader]) -> None:
    sample = loader(ASPIRIN, size=64).dataset()[0]
    assert sample.image.shape == (3, 64, 64) and len(sample.image.flatten(1).unique(dim=1).T) > 2
    assert sample.captions[0] == properties(Chem.MolFromSmiles(ASPIRIN))
    assert sample.captions[0].startswith("1 ring, 1 aromatic, carboxylic acid, ester,")
    assert "C9H8O4, weight 180" in sample.captions[0]


def test_randomised_smiles_are_the_same_molecule_and_only_training_sees_them(
    loader: Callable[..., ChemistryLoader],
) -> None:
    molecules = loader(ASPIRIN, randomised=4)
    ((told, *spelled),) = molecules.dataset("train", augment=True).captions
    assert molecules.dataset("val").captions == [(told,)] and len(spelled) > 1
    back = {Chem.CanonSmiles("".join(text.split()).replace("q", "")) for text in spelled}
    assert back == {Chem.CanonSmiles(ASPIRIN)}
    assert molecules.dataset("train", augment=True).captions == [(told, *spelled)]


def test_what_does_not_parse_is_counted_and_listed(loader: Callable[..., ChemistryLoader]) -> None:
    molecules = loader("smiles", "CCO ethanol", "C1CC", "OCC", "hello")
    assert molecules.smiles == ["CCO"] and molecules.dataset().skipped == {"unusable row": 2}
    assert molecules.skipped == [
        "molecules.smi line 3: 'C1CC' is no SMILES",
        "molecules.smi line 5: 'hello' is no SMILES",
    ]
    with pytest.raises(ValueError, match=r"holds no molecule: molecules\.smi line 1: 'hello' is no SMILES"):
        loader("hello")


def test_no_scaffold_is_both_trained_on_and_held_out(loader: Callable[..., ChemistryLoader]) -> None:
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    molecules = loader()
    for seed in range(4):
        parts = molecules.splits(0.4, seed)
        train, val = ({MurckoScaffoldSmiles(molecules.smiles[i]) for i in parts[split]} for split in ("train", "val"))
        assert train and val and not train & val
        assert sorted(parts["train"] + parts["val"]) == list(range(len(molecules)))
