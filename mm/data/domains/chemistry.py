"""Molecules from a file of SMILES: the drawn molecule, and a text of what RDKit computes of it.

Tokens follow Schwaller et al. 2019 (arXiv:1811.02633), randomised SMILES Arús-Pous et al. 2019, scaffolds Bemis &
Murcko 1996. RDKit's own wheel carries 5,000 molecules of the NCI: `rdkit/Data/NCI/first_5K.smi`.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from PIL.Image import Image

from kernels.errors import UserError
from kernels.ranges import check_values, ranges_of
from mm.data.domains.base import DomainAdapter
from mm.optional import require

TOKEN = re.compile(r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|%\d{2}|\d|[().=#\-+\\/:~@?<>*$]")
SPELLED = re.compile(r"\[[^\]]+\]|q[bcnosp]|br|cl|[bcnospfi]|%\d{2}|\d|[().=#\-+\\/:~@?<>*$]")
ATOM = re.compile(r"\[(\d*)(q?)([bcfhiknopsuvwy]|[a-z]{2}|\*)((?:@[@a-z\d]*?)?(?:h\d*)?(?:[+-]+\d*)?(?::\d+)?)\]")
"""A spelled atom in brackets: isotope, mark of an aromatic one, element, and the rest. One letter is tried first: NH
and BH are hydrogen on an atom, not nihonium and bohrium."""
SEPARATOR = ":"
"""Stands between what is asked of a molecule, in which it does not occur, and its spelled SMILES."""
DESCRIBED = re.compile(r"(?P<asked>.+), [^,]+, weight \d+, ")
"""The beginning of what `properties` gives."""
GROUPS = {
    "carboxylic acid": "fr_COO",
    "ester": "fr_ester",
    "amide": "fr_amide",
    "ketone": "fr_ketone",
    "aldehyde": "fr_aldehyde",
    "ether": "fr_ether",
    "phenol": "fr_phenol",
    "aliphatic alcohol": "fr_Al_OH",
    "nitro group": "fr_nitro",
    "nitrile": "fr_nitrile",
    "aniline": "fr_aniline",
    "sulfonamide": "fr_sulfonamd",
    "sulfide": "fr_sulfide",
    "halogen": "fr_halogen",
}
"""What a chemist sees in a drawing, by RDKit's name for the count of it."""


class ChemistryLoader(DomainAdapter):
    """Molecules, one SMILES at the start of each line (a title may follow), drawn and described.

    What does not parse is listed in `skipped`; a molecule that occurs twice is one row.

    Args:
        smiles_path: the file; also .csv with the SMILES in the first column.
        randomised: randomised SMILES of a training row, as captions beside the text of its properties.
        size: side of the drawing in pixels.
        joined: for a model that writes molecules, let each SMILES of a training row, the canonical one too, follow what
            is asked of it and SEPARATOR in one text, and SEPARATOR alone in another, in the place of the SMILES alone.

    Raises:
        ValueError: the file is no text, or holds no molecule.
    """

    def __init__(
        self,
        smiles_path: str | Path,
        randomised: Annotated[int, "[0, inf)"] = 2,
        size: Annotated[int, "[16, inf)"] = 192,
        joined: bool = False,
    ) -> None:
        ranges = ranges_of(ChemistryLoader.__init__)
        check_values({"randomised": randomised, "size": size}, ranges, "adapter")
        self.chemistry = require("rdkit.Chem")
        self.path = Path(smiles_path)
        self.randomised = randomised
        self.size = size
        self.joined = joined
        self.smiles, self.skipped = self._read()

    @property
    def name(self) -> str:
        return self.path.stem

    def __len__(self) -> int:
        return len(self.smiles)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": self._drawing(index), "text": properties(self._molecule(index))}

    def augmented(self, index: int) -> Mapping[str, Any]:
        """The properties, and the molecule spelled from different atoms on."""
        molecule = self._molecule(index)
        written = list(self.chemistry.MolToRandomSmilesVect(molecule, self.randomised, randomSeed=index + 1))
        texts = [properties(molecule)]
        if self.joined:
            beginnings = (prefix_of(), prefix_of(asked(molecule)))
            for smiles in dict.fromkeys([self.smiles[index], *written]):
                texts += [f"{beginning} {spell(smiles)}" for beginning in beginnings]
        else:
            texts += dict.fromkeys(spell(smiles) for smiles in written)
        return {"image": self._drawing(index), "text": tuple(texts)}

    def splits(self, held_out: float, seed: int) -> dict[str, list[int]]:
        """No scaffold is in both: `val` takes whole scaffolds, in an order by chance, while they fit into its share."""
        scaffold = require("rdkit.Chem.Scaffolds.MurckoScaffold")
        groups: dict[str, list[int]] = defaultdict(list)
        for row, smiles in enumerate(self.smiles):
            groups[scaffold.MurckoScaffoldSmiles(smiles)].append(row)
        wanted = round(held_out * len(self))
        held: list[int] = []
        for name in sorted(groups, key=lambda name: _chance(seed, name)):
            rows = groups[name]
            if len(held) + len(rows) <= wanted:
                held += rows
        kept = set(range(len(self))) - set(held)
        return {"train": sorted(kept), "val": sorted(held)}

    def _read(self) -> tuple[list[str], list[str]]:
        """The molecules as canonical SMILES, each once, and a line for each line that is none."""
        found: dict[str, None] = {}
        skipped = []
        with require("rdkit.rdBase").BlockLogs():
            for number, written in self._written():
                molecule = self.chemistry.MolFromSmiles(written)
                if molecule is None or not molecule.GetNumAtoms():
                    skipped.append(f"{self.path.name} line {number}: {written!r} is no SMILES")
                else:
                    found[self.chemistry.MolToSmiles(molecule)] = None
        if not found:
            reason = skipped[0] if skipped else "it is empty"
            raise UserError(f"{self.path} holds no molecule: {reason}")
        return list(found), skipped

    def _written(self) -> Iterator[tuple[int, str]]:
        """(number, first word) of each line that has one; a first line that says "smiles" is a header."""
        try:
            lines = self.path.read_text().splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is not a text file of SMILES: {error}") from error
        for number, line in enumerate(lines, 1):
            written = re.split(r"[\s,]+", line.strip())[0]
            header = number == 1 and "smiles" in written.lower()
            if written and not header:
                yield number, written

    def _molecule(self, index: int) -> Any:
        return self.chemistry.MolFromSmiles(self.smiles[index])

    def _drawing(self, index: int) -> Callable[[], Image]:
        draw = require("rdkit.Chem.Draw")
        size = (self.size, self.size)
        return lambda: draw.MolToImage(self._molecule(index), size=size)


def _chance(seed: int, scaffold: str) -> bytes:
    """What scaffolds are ordered by: as good as random, and the same for every file that holds them."""
    text = f"{seed} {scaffold}"
    return hashlib.sha256(text.encode()).digest()


def tokens(smiles: str) -> list[str]:
    """Atoms, bonds, branches and ring closures. Raises ValueError on a character that belongs to none."""
    found = TOKEN.findall(smiles)
    if "".join(found) != smiles:
        raise UserError(f"{smiles!r} holds characters that no SMILES token has")
    return found


def spell(smiles: str) -> str:
    """A SMILES as words that the models' tokenizers keep apart.

    BPE lowers all letters, so that benzene (c1ccccc1) and cyclohexane (C1CCCCC1) would read alike, and joins atoms
    into syllables of English. Aromatic atoms are therefore marked by a q, which no element has, and tokens stand apart.
    """
    words = [re.sub(r"^(\[\d*)?([a-z])", r"\1q\2", token) for token in tokens(smiles)]
    return " ".join(words)


def unspell(text: str) -> str:
    """The SMILES that `spell` made a text of, also after a tokenizer has lowered its letters and moved its spaces.

    Raises ValueError on a text that `spell` does not write; whether the SMILES is of a molecule is not asked.
    """
    joined = "".join(text.lower().split())
    words = SPELLED.findall(joined)
    if "".join(words) != joined:
        raise UserError(f"{text!r} is no spelled SMILES")
    return "".join(_unspelled(word) for word in words)


def _unspelled(word: str) -> str:
    """One token of a SMILES from its word in small letters."""
    if not word.startswith("["):
        return word[1:] if word.startswith("q") else word.capitalize()
    atom = ATOM.fullmatch(word)
    if atom is None:
        raise UserError(f"{word!r} is no atom")
    isotope, aromatic, element, rest = atom.groups()
    return f"[{isotope}{element if aromatic else element.capitalize()}{rest.upper()}]"


def prefix_of(wanted: str = "") -> str:
    """What a written molecule begins with: what `asked` gives and SEPARATOR, or SEPARATOR alone."""
    return f"{wanted} {SEPARATOR}".lstrip()


def spelled_in(text: str) -> str | None:
    """What follows SEPARATOR in a text; None where there is none."""
    _, separator, spelled = text.partition(SEPARATOR)
    return spelled if separator else None


def properties(molecule: Any) -> str:
    """What RDKit computes of a molecule, in the order in which a drawing shows it: rings, groups, formula, numbers."""
    formula = require("rdkit.Chem.rdMolDescriptors").CalcMolFormula(molecule)
    return ", ".join([asked(molecule), formula, *_numbers(molecule)])


def asked(molecule: Any) -> str:
    """Its rings and functional groups: how the text of `properties` begins, and what is asked of a written molecule."""
    return ", ".join([_rings(molecule), *_groups(molecule)])


def asked_in(description: str) -> str | None:
    """What `asked` gives of the molecule that a text of `properties` describes; None of another text."""
    found = DESCRIBED.match(description)
    return found["asked"] if found else None


def _rings(molecule: Any) -> str:
    descriptors = require("rdkit.Chem.Descriptors")
    rings = descriptors.RingCount(molecule)
    if not rings:
        return "no ring"
    plural = "s" if rings > 1 else ""
    return f"{rings} ring{plural}, {descriptors.NumAromaticRings(molecule)} aromatic"


def _groups(molecule: Any) -> list[str]:
    """Its functional groups, with their number where there are several of one."""
    fragments = require("rdkit.Chem.Fragments")
    groups = []
    for name, function in GROUPS.items():
        count = getattr(fragments, function)(molecule)
        if count == 1:
            groups.append(name)
        elif count:
            groups.append(f"{count} × {name}")
    return groups


def _numbers(molecule: Any) -> list[str]:
    """Weight in dalton, polar surface in square ångström, counts, and the octanol-water partition coefficient."""
    descriptors = require("rdkit.Chem.Descriptors")
    numbers = {
        "weight": descriptors.MolWt(molecule),
        "polar surface": descriptors.TPSA(molecule),
        "donors": descriptors.NumHDonors(molecule),
        "rotatable bonds": descriptors.NumRotatableBonds(molecule),
    }
    words = [f"{name} {value:.0f}" for name, value in numbers.items()]
    words.append(f"logP {descriptors.MolLogP(molecule):.1f}")
    return words
