"""What one layout has kept, every other reads to the bit: weights, moments, counts of steps."""

from mm.bench.checkpoints import ALONE, FINISHED, described, read_everywhere

WORDS = (ALONE, "fsdp2", "fsdp2-pp2")


def test_each_of_three_layouts_and_a_finished_run_is_read_under_all() -> None:
    found = read_everywhere(WORDS, 100)
    assert {(each.saved, each.loaded) for each in found} == {(a, b) for a in (*WORDS, FINISHED) for b in WORDS}
    assert not any(each.differ for each in found), described(found)
    assert all(each.tensors > 50 for each in found)
