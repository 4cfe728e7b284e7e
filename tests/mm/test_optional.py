"""What the extra brings is missed in one line that says how to get it."""

import pytest

from mm.optional import require


def test_an_absent_library_names_its_extra() -> None:
    with pytest.raises(ValueError, match=r"nothing_of_this_name is not installed: pip install 'mm-align\[adapt\]'"):
        require("nothing_of_this_name.part")
