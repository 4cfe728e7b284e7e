"""What lies between the markers of a page is written from results, the rest is left alone."""

import re
from pathlib import Path

import pytest

from eval.claims import Evidence
from eval.pages import BLOCK, BLOCKS, draw_studies, filled, write_pages
from eval.studies import Study

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EMPTY = "a\n<!-- studies: written by scripts/reproduce.py -->\nold\n<!-- /studies -->\nb"


def test_only_what_lies_between_the_markers_is_replaced() -> None:
    assert filled(EMPTY, {"studies": "new"}) == EMPTY.replace("old", "new")
    two = EMPTY + EMPTY.replace("studies", "claims")
    assert filled(two, {"studies": "1", "claims": "2"}).count("\n2\n<!-- /claims -->\nb") == 1


def test_a_page_says_which_block_there_is_not(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(EMPTY.replace("studies", "study"))
    with pytest.raises(ValueError, match=r"page\.md: no block is called study; there are headline, "):
        write_pages([page], Evidence([]))
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no page has a block"):
        write_pages([page], Evidence([]))


def test_a_block_without_a_result_is_empty(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(EMPTY + "\n" + EMPTY.replace("studies", "kills"))
    assert write_pages([page], Evidence([])) == ["studies", "kills"]
    assert page.read_text() == EMPTY.replace("old", "") + "\n" + EMPTY.replace("studies", "kills").replace("old", "")


def test_every_block_stands_on_one_page() -> None:
    found = [match["name"] for page in PAGES for match in BLOCK.finditer(page.read_text())]
    assert sorted(found) == sorted(BLOCKS)


def test_every_link_of_a_page_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_finding_is_listed() -> None:
    listed = set(re.findall(r"findings/(\w+)\.sh\)", (ROOT / "docs" / "findings.md").read_text()))
    assert listed == {path.stem for path in (ROOT / "findings").glob("[a-z]*.sh")}


def test_a_study_is_drawn_and_shown_the_same_bytes_of_the_same_figures(tmp_path: Path) -> None:
    measured = {name: {0: 1.0, 1: 3.0} for name in ("RSUM", "image_to_text/R@1", "text_to_image/R@1")}
    studies = {
        "made": Study("made", {"a": measured, "b": measured}),
        "other": Study("other", {"a": {"loss": {0: 1.0}}}),
    }
    draw_studies(studies, tmp_path)
    (drawn,) = tmp_path.iterdir()
    first = drawn.read_bytes()
    draw_studies(studies, tmp_path)
    assert drawn.name == "study-made.svg" and drawn.read_bytes() == first
    shown = BLOCKS["studies"](Evidence([], studies))
    assert shown.startswith("## made\n\n![") and "(img/study-made.svg)\n\n| study | variant |" in shown
    assert "other" not in shown
