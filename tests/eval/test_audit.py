"""Decimals of a recall give its protocol away, when there are enough of them."""

import pytest

from eval.audit import PUBLISHED, Published, audit, audit_figure, parse, smallest_sizes


def verdicts(value, direction, queries=()):
    return {fit.queries: fit.fits for fit in audit(value, direction, queries)}


def test_the_brief_s_example_is_25000_captions_and_not_25010():
    found = verdicts("0.36584", "t2i")
    assert found[25_000] and not found[25_010] and not found[5_000] and not found[1_000]


def test_every_count_fits_its_own_size_however_it_is_printed():
    for n in (25_000, 25_010, 5_000, 1_000):
        for count in range(1, n, 997):
            assert verdicts(f"{count / n:.6f}", "t2i")[n] and verdicts(f"{100 * count / n:.4f}%", "t2i")[n]


def test_one_decimal_of_percent_says_nothing():
    assert all("everything" in fit.verdict for fit in audit("37.8%", "t2i") if fit.queries > 1000)


def test_five_published_figures_that_decide():
    by_value = {p.value: verdicts(p.value, p.direction) for p in PUBLISHED}
    assert by_value["0.5411835312843323"] == {25_010: True, 25_000: False, 25_014: False, 5_000: False, 1_000: False}
    assert by_value["0.7059999704360962"][5_000]
    assert by_value["0.8575999736785889"] == {25_010: False, 25_000: True, 25_014: False, 5_000: True, 1_000: False}
    assert not any(by_value["0.6885090470314026"].values()) and smallest_sizes("0.6885090470314026")[0] == 1053
    assert by_value["28.42%"][5_000] and not by_value["28.42%"][1_000]


def test_percent_and_share_are_told_apart_and_nonsense_is_refused():
    assert parse("36.584") == pytest.approx((0.36584, 5e-6)) == parse("0.36584")
    for wrong in ("many", "120%", "-0.1"):
        with pytest.raises(ValueError, match=r"number|share"):
            parse(wrong)
    with pytest.raises(ValueError, match="direction"):
        audit("0.5", "a2b")


def test_an_audit_lists_every_size_with_its_verdict():
    found = audit_figure(Published("0.36584", "t2i", "what", "where"), queries=[25_000, 50_000])
    sizes = [fit.queries for fit in found.fits]
    assert sizes == [25_010, 25_000, 25_014, 5_000, 1_000, 50_000] and found.fits[-1].meaning == "asked for"
    content = found.as_json()
    assert content["value"] == "0.36584" and content["smallest"] == smallest_sizes("0.36584")
    assert [fit["verdict"] for fit in content["fits"]][:3] == ["ruled out", "fits", "fits"]
    assert found.table().row_count == 6
