"""The templates: what is text is escaped wherever it is put, and what is shown in colour is said in words."""

import re

import pytest

from eval.report.markup import (
    Cell,
    Section,
    Table,
    card,
    facts,
    figure,
    folded,
    found,
    grid,
    image,
    item,
    key,
    note,
    page,
    player,
    section,
    subheading,
    table,
    verdict,
)
from eval.report.media import Source

EVIL = '"><script>alert(1)</script>&{x}'
ICON = Source("data:image/png;base64,AA==", 2, 3)
TEMPLATES = {
    "card": lambda: card(EVIL, EVIL, EVIL),
    "facts": lambda: facts([(EVIL, EVIL)]),
    "figure": lambda: figure(EVIL, EVIL, EVIL),
    "folded": lambda: folded(EVIL, EVIL),
    "grid": lambda: grid([EVIL]),
    "image": lambda: image(ICON, EVIL),
    "item": lambda: item(EVIL, False, EVIL),
    "key": lambda: key([(EVIL, 1)]),
    "note": lambda: note(EVIL),
    "player": lambda: player("data:audio/flac;base64,AA==", ICON, EVIL),
    "section": lambda: section(Section("a", EVIL, note(EVIL), EVIL, folded=True)),
    "subheading": lambda: subheading(EVIL),
    "table": lambda: table(Table(EVIL, [EVIL], [[Cell(EVIL, EVIL)]], EVIL)),
    "verdict": lambda: verdict([EVIL, EVIL], EVIL),
    "page": lambda: page(EVIL, EVIL, [Section("a", EVIL, note(EVIL))]),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_escapes_what_it_is_given(name):
    shown = str(TEMPLATES[name]())
    assert "<script>" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown and "&#34;&gt;" in shown


def test_a_page_is_one_file_that_nothing_outside_can_enter():
    shown = page("t", "lead", [Section("a", "First", note("x"))])
    assert "default-src 'none'" in shown and not re.search(r'(src|href)="(?!data:|#)', shown)
    assert '<a href="#a">First</a>' in shown and '<section id="a" aria-labelledby="a-h"><h2 id="a-h">' in shown
    assert "prefers-color-scheme: dark" in shown and "http" not in shown.replace("http-equiv", "")


def test_right_and_wrong_are_words_too():
    shown = str(found([item("a", True, "0.9"), item("b", False, "0.8")], images=True))
    assert shown.count('class="unseen">right<') == 1 and shown.count('class="unseen">wrong<') == 1
    assert '<ol class="found thumbs">' in shown


def test_images_are_whole_and_small_ones_are_not_blurred():
    assert 'class="pixels" src="data:image/png;base64,AA==" width="2" height="3" alt="x"' in image(ICON, "x")
    assert 'class="photo"' in image(Source("data:,", 300, 200), "x")


def test_a_table_scrolls_by_keyboard_and_names_its_rows():
    shown = str(table(Table("Sizes", ["", "n"], [[Cell("a"), Cell("1", "0–2")]])))
    assert 'tabindex="0" aria-label="Sizes"' in shown and '<th scope="row">a</th><td>1 <small>0–2</small></td>' in shown
