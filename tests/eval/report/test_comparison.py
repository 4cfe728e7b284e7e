"""The report of a comparison: what differs, by how much, and on which queries."""

import re
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from eval.compare import ComparedRun, compare
from eval.embeddings import Embeddings
from eval.protocols import Protocol
from eval.report.cards import Examples
from eval.report.comparison import differing, directions_of, reasons, sentence, short_names, write_comparison

IDS = np.arange(40)
PROTOCOL = Protocol("toy", "val", 40, 200, "5")
EXAMPLES = Examples([f"caption <{i}>" for i in range(200)], lambda i: Image.new("RGB", (20, 10), (6 * i, 9, 9)))


def run(name, noise):
    """Captions are their image's vector and noise."""
    centre, rng = np.random.default_rng(99).standard_normal((40, 8)), np.random.default_rng(0)
    text = np.repeat(centre, 5, 0) + noise * rng.standard_normal((200, 8))
    arrays = {"image": centre, "text": text, "image_ids": IDS, "caption_image_ids": np.repeat(IDS, 5)}
    embeddings = Embeddings.of(arrays)
    return ComparedRun.of(name, {"protocol": {"val": asdict(PROTOCOL)}}, embeddings)


@pytest.fixture(scope="module")
def runs():
    return [run("runs/noisy", 1.5), run("runs/clear", 0.5), run("runs/same", 1.5)]


def test_the_verdict_counts_what_these_items_can_tell_apart(runs):
    found = compare(runs)
    clear = [row for row in found if row["run"] == "runs/clear"]
    same = [row for row in found if row["run"] == "runs/same"]
    assert re.match(r"b is better than a in \d of 6 recalls\.", sentence("b", "a", clear))
    said = reasons("b", clear)
    assert any(re.match(r"b, image → text R@1: \+\d", each) for each in said) and len(said) in (2, 3)
    assert all("can be told" in each for each in reasons("b", same))
    assert sentence("b", "a", same).startswith("b and a do not differ in any of 6 recalls")
    turned = [row | {"difference": -row["difference"]} for row in clear]
    assert sentence("b", "a", turned).startswith("b is worse than a in")
    assert "better than a in" in sentence("b", "a", [*clear, *turned]) and "worse in" in sentence(
        "b", "a", clear + turned
    )


def test_queries_are_those_whose_rank_changes_most_no_image_twice(runs):
    before, after = (directions_of(each)["text_to_image"] for each in runs[:2])
    taken = set()
    gained, lost = (differing(before, after, better, taken) for better in (True, False))
    assert len(gained) == 3 and all(before.ranks[at] > after.ranks[at] for at in gained)
    assert all(before.ranks[at] < after.ranks[at] for at in lost)
    assert before.ranks[gained[0]] / after.ranks[gained[0]] == (before.ranks / after.ranks).max()
    assert len(taken) == len({int(before.asking.ids[at]) for at in gained + lost}) == len(gained + lost)
    assert differing(before, before, True, set()) == []


def test_a_report_shows_both_runs_on_the_queries_that_tell_them_apart(runs, tmp_path):
    path = write_comparison(tmp_path / "report.html", runs, compare(runs), EXAMPLES)
    page = path.read_text()
    assert re.findall(r'<section id="([\w-]+)"', page) == ["figures", "differences", "queries-1", "queries-2"]
    assert "clear is better than noisy" in page and "runs/clear" not in page
    assert "caption &lt;" in page and "caption <" not in page and not re.search(r'(src|href)="(?!data:|#)', page)
    cards = page.split("<article")[1:]
    assert len(cards) >= 6 and all("noisy: first match at rank" in card for card in cards[:3])
    assert "by clear alone" in page and "40 queries" in page and "200 queries" in page


def test_without_data_the_numbers_remain_and_the_reason_is_said(runs, tmp_path):
    page = write_comparison(tmp_path / "report.html", runs[:2], compare(runs[:2]), None, "it is <gone>").read_text()
    assert "<article" not in page and "it is &lt;gone&gt;" in page and "by clear alone" in page


def test_names_are_short_where_that_tells_runs_apart(runs):
    assert short_names(runs[:2]) == {"runs/noisy": "noisy", "runs/clear": "clear"}
    twins = [runs[0], ComparedRun("old/noisy", PROTOCOL, runs[0].embeddings, {})]
    assert set(short_names(twins).values()) == {"runs/noisy", "old/noisy"}
