"""torch's number of threads is another one for a while only."""

import pytest
import torch

from kernels.threads import torch_threads


def test_the_number_of_threads_comes_back_whatever_happens() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), torch_threads(before + 1) as had:
        assert had == before and torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
