"""A study read back: what a table says, and what its seeds can and cannot show."""

from collections.abc import Callable
from pathlib import Path

import pytest

from eval.studies import Study

HEAD = "study,variant,seed,measure,value\n"


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    """study(a=[1, 2], b=[3]) -> one measure `R` of these variants, by seed."""

    def make(**variants: list[float]) -> Study:
        path = tmp_path / "made.csv"
        rows = [
            f"made,{name},{seed},R,{value}\n" for name, values in variants.items() for seed, value in enumerate(values)
        ]
        path.write_text(HEAD + "".join(rows))
        return Study.load(path)

    return make


def test_differences_are_taken_seed_by_seed(study: Callable[..., Study]) -> None:
    """Seeds that differ by ten from each other, variants by about one: only paired can that be seen."""
    found = study(a=[11.0, 21.1, 30.9], b=[10.0, 20.0, 30.0]).difference("a", "b", "R")
    assert found.mean == pytest.approx(1.0) and found.seeds == 3
    # The differences 1, 1.1, 0.9 have the deviation 0.1; Student's t with two degrees of freedom is 4.303.
    assert (found.low, found.high) == pytest.approx((1 - 0.2484, 1 + 0.2484), abs=1e-3)
    assert str(found).endswith("3 seeds: a difference")


def test_an_interval_that_holds_zero_shows_no_difference(study: Callable[..., Study]) -> None:
    made = study(a=[1.0, 3.0], b=[2.0, 2.0])
    assert "no difference that these seeds can show" in made.differences("b", "R")


def test_one_seed_has_no_interval(study: Callable[..., Study]) -> None:
    made = study(a=[1.0], b=[3.0, 5.0])
    assert str(made.difference("a", "b", "R")) == "-2.00 (one seed: no interval)"


def test_what_is_not_there_is_named(study: Callable[..., Study], tmp_path: Path) -> None:
    made = study(a=[1.0])
    with pytest.raises(ValueError, match="made has no variant 'c': a"):
        made.of("c", "R")
    with pytest.raises(ValueError, match="made/a has no 'speed': R"):
        made.of("a", "speed")
    with pytest.raises(FileNotFoundError, match=r"ablate\.py configs/ablations/other\.yaml --table \S*other\.csv"):
        Study.load(tmp_path / "other.csv")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"bad\.csv is no table of scripts/ablate\.py"):
        Study.load(tmp_path / "bad.csv")


def test_the_plot_has_a_row_for_each_variant_and_a_dot_for_each_seed(study: Callable[..., Study]) -> None:
    (axes,) = study(a=[1.0, 2.0], b=[3.0, 4.0]).plot(["R"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    dots = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert [list(line.get_xdata()) for line in dots] == [[1, 2], [3, 4]]
