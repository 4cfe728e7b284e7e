"""Stacks as py-spy writes them, drawn."""

import re
import xml.etree.ElementTree as ElementTree

from mm.bench.flame import boxes_of, drawn, folded

RAW = """\
main (a.py:1);Runner.run (asyncio/runners.py:9);embed (mm/serve/app.py:3);send (x.py:1) 6
main (a.py:1);Runner.run (asyncio/runners.py:9);embed (mm/serve/app.py:7) 2
main (a.py:1);Runner.run (asyncio/runners.py:8);<listen> (mm/serve/dispatcher.py:1) 2
other thread (b.py:1) 90
"""


def test_each_function_is_as_wide_as_its_share_and_lies_within_its_caller() -> None:
    stacks = folded(RAW)
    assert sum(stacks.values()) == 10 and len(stacks) == 3
    boxes = {
        name.split(" ")[0]: (row, round(start, 3), round(share, 3)) for row, start, share, name in boxes_of(stacks, 10)
    }
    assert boxes == {"Runner.run": (0, 0, 1), "<listen>": (1, 0, 0.2), "embed": (1, 0.2, 0.8), "send": (2, 0.2, 0.6)}


def test_the_drawing_is_well_formed_and_names_what_is_ours_in_its_colour() -> None:
    svg = drawn(folded(RAW))
    root = ElementTree.fromstring(svg)
    assert len(root.findall("{http://www.w3.org/2000/svg}g")) == 4
    assert svg.count("#f4a261") == 2 and "&lt;listen&gt;" in svg
    assert re.search(r"<title>send \(x\.py\): 60\.0 %</title>", svg)
