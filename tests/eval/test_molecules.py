"""Written molecules are counted: of all, of the valid, of the different ones."""

import pytest

from eval.intervals import Bootstrap
from eval.molecules import Wanted, WrittenMolecule, molecules_table, score_molecules

ACID = Wanted("no ring", frozenset({"carboxylic acid"}))
ETHER = Wanted("no ring", frozenset({"ether"}))
RING = Wanted("1 ring, 1 aromatic", frozenset())
A = WrittenMolecule("CC(=O)O", ACID)
B = WrittenMolecule("COC", ETHER)
C = WrittenMolecule("c1ccccc1", RING)


def test_each_share_is_of_what_the_one_before_left() -> None:
    scores = score_molecules([A, A, B, C, None], {"COC"}, bootstrap=Bootstrap(50))
    assert scores.values == {"valid": 80.0, "unique": 75.0, "novel": pytest.approx(100 * 2 / 3)}
    assert set(scores.intervals) == {"valid", "novel"}
    low, high = scores.intervals["valid"]
    assert low < 80 < high


def test_what_is_asked_counts_against_all_that_is_written() -> None:
    scores = score_molecules([A, B, C, None], set(), [ACID, ACID, ACID, RING], Bootstrap(50))
    assert (scores.values["rings"], scores.values["groups"], scores.values["both"]) == (50.0, 25.0, 25.0)


def test_nothing_valid_is_no_error() -> None:
    scores = score_molecules([None, None], set(), [ACID, RING], Bootstrap(50))
    assert set(scores.values.values()) == {0.0} and "novel" not in scores.intervals


def test_the_table_has_a_row_for_each_writer_and_kind() -> None:
    of_one = {"values": {"valid": 90.0, "unique": 80.0, "novel": 70.0}, "intervals": {"valid": [88.0, 92.0]}}
    result = {
        "evaluated": "runs/molecules",
        "order": 5,
        "molecules": {"free": 10, "asked": 7},
        "decoding": {"temperature": 1.0, "top_p": 1.0},
        "scores": {"free": {"run": of_one, "ngram": of_one}, "asked": {"run": of_one}},
        "hardware": "a core",
        "commit": "abc",
    }
    lines = molecules_table([result]).splitlines()
    assert lines[2].startswith(
        "| molecules | free, 10 | temperature 1, top-p 1 | 90.0 (88.0 to 92.0) | 80.0 | 70.0 | –"
    )
    assert lines[3].startswith("| 5-gram | free, 10 |") and lines[4].startswith("| molecules | asked, 7 |")
