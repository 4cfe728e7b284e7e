"""Molecules: read, spelled, described, drawn and held out by scaffold."""

from collections.abc import Callable
from pathlib import Path

import pytest

Chem = pytest.importorskip("rdkit.Chem")

from encoders.tokenizer import Tokenizer  # noqa: E402 - after the skip
from mm.data.domains.chemistry import (  # noqa: E402
    ChemistryLoader,
    asked,
    asked_in,
    properties,
    spell,
    spelled_in,
    tokens,
    unspell,
)

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
    assert tokens("N<-[Fe]->N") == ["N", "<", "-", "[Fe]", "-", ">", "N"]
    with pytest.raises(ValueError, match="'C!C' holds characters"):
        tokens("C!C")


def test_spelling_survives_a_tokenizer_that_lowers_letters() -> None:
    assert spell("c1nCl") == "qc 1 qn Cl"
    for one, other in (("c1ccccc1", "C1CCCCC1"), ("[nH]", "[NH]"), ("[s+]", "[As+]"), ("[13c]", "[13C]")):
        assert spell(one).lower() != spell(other).lower()


@pytest.fixture(scope="module")
def nci() -> ChemistryLoader:
    """The molecules that RDKit's wheel carries."""
    import rdkit

    return ChemistryLoader(Path(rdkit.__file__).parent / "Data" / "NCI" / "first_5K.smi")


def test_unspelling_inverts_spelling_of_all_molecules(nci: ChemistryLoader) -> None:
    for row, smiles in enumerate(nci.smiles):
        (other,) = nci.chemistry.MolToRandomSmilesVect(nci.chemistry.MolFromSmiles(smiles), 1, randomSeed=row)
        for written in (smiles, other):
            assert unspell(spell(written)) == written == unspell(spell(written).lower())


def test_a_tokenizer_keeps_what_is_spelled(nci: ChemistryLoader) -> None:
    tokenizer = Tokenizer("scratch", 96)
    atoms = {token for smiles in nci.smiles for token in tokens(smiles)}
    assert {"[nH]", "[NH3+]", "[Hg]", "[13C]", "Br", "s"} & atoms > {"[nH]", "Br", "s"}
    for written in [*sorted(atoms), "C[se]1[Th]%12[Co+2]/C=C\\[C@@H]<-[BH3-]->[Rh]", *nci.smiles[::50]]:
        assert unspell(tokenizer.decode(tokenizer.word_ids(spell(written)))) == written


@pytest.mark.parametrize("text", ["qz", "c l x", "[q", "[zzz]", "1 ring"])
def test_what_is_no_spelled_smiles_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no spelled SMILES|is no atom"):
        unspell(text)


def test_what_is_asked_begins_every_description(nci: ChemistryLoader) -> None:
    for row in range(0, len(nci), 10):
        molecule = nci.chemistry.MolFromSmiles(nci.smiles[row])
        assert asked_in(properties(molecule)) == asked(molecule)
        assert ":" not in properties(molecule)
    assert asked_in("a photograph of a dog, and a cat") is None


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
    back = {Chem.CanonSmiles(unspell(text)) for text in spelled}
    assert back == {Chem.CanonSmiles(ASPIRIN)}
    assert molecules.dataset("train", augment=True).captions == [(told, *spelled)]


def test_what_is_asked_and_the_molecule_stand_in_one_text(loader: Callable[..., ChemistryLoader]) -> None:
    molecules = loader(ASPIRIN, joined=True)
    ((told, *texts),) = molecules.dataset("train", augment=True).captions
    assert molecules.dataset("val").captions == [(told,)]
    wanted = "1 ring, 1 aromatic, carboxylic acid, ester, ether :"
    assert [text.partition(":")[0] for text in texts] == ["", wanted[:-1]] * (len(texts) // 2)
    assert texts[1] == f"{wanted} {spell(Chem.CanonSmiles(ASPIRIN))}"
    found = [spelled_in(text) for text in texts]
    assert found[::2] == found[1::2] and len(set(found)) == len(texts) // 2 > 1
    assert {Chem.CanonSmiles(unspell(text or "")) for text in found} == {Chem.CanonSmiles(ASPIRIN)}
    assert spelled_in(told) is None


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
