"""The notebooks' image of expert load: a data URI, whatever is missing."""

import numpy as np
import pytest

from eval.plots import expert_heat_map


@pytest.mark.parametrize("load", [[0.0, 3.0], [[0.0, 0.0], [1.0, 2.0]]])
def test_experts_without_a_token_are_drawn_all_the_same(load):
    assert expert_heat_map({"image": np.array(load)}).startswith("data:image/png;base64,")
