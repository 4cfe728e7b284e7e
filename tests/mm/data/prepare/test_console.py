"""What a preparing script shows."""

import pytest

from mm.data.prepare.console import LISTED, count_bar, print_list, resumable


def test_a_list_is_cut_and_says_how_much_of_it(capsys):
    print_list("nothing:", [])
    print_list("few:", ["[one]"])
    print_list("many:", [str(number) for number in range(LISTED + 2)])
    few, many = capsys.readouterr().out.split("many:")
    assert few == "few:\n  [one]\n"
    assert many.split("\n  ") == ["", *(str(number) for number in range(LISTED)), "… and 2 more\n"]


def test_a_bar_counts(capsys):
    with count_bar("train", 5) as advance:
        advance(2)
        advance(3)
    shown = capsys.readouterr().out
    assert shown.startswith("train") and "5/5" in shown


def test_ctrl_c_is_one_line_and_exit_code_130(capsys):
    with pytest.raises(SystemExit) as stopped, resumable("prepare_coco"):
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "prepare_coco: stopped; the same command goes on from here\n"
