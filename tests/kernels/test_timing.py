"""The benchmark's own arithmetic: who runs when, what is counted as memory, what a row says."""

import torch

from kernels.timing import Contest, cpu_peak_bytes


def test_implementations_take_turns() -> None:
    order: list[str] = []
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    contest = Contest("op", "case", "float32", "forward", runs)
    rows = contest.rows(repeats=4)
    assert order == ["a", "b"] * 5  # once to warm up and to weigh, then four rounds
    assert [row["implementation"] for row in rows] == ["a", "b"]
    assert {"op", "case", "dtype", "implementation", "pass", "milliseconds", "peak_bytes"} <= rows[0].keys()
    assert all(row["repeats"] == 4 and row["milliseconds"] >= row["fastest_milliseconds"] >= 0 for row in rows)


def test_the_peak_is_what_is_held_at_once() -> None:
    def run() -> None:
        for _ in range(3):
            torch.empty(1000)
        torch.cat([torch.empty(500), torch.empty(500)])

    assert 4 * 2000 <= cpu_peak_bytes(run) < 4 * 2100


def test_gradients_do_not_pile_up() -> None:
    leaf = torch.ones(3, requires_grad=True)
    contest = Contest("op", "case", "float32", "forward_backward", {"a": lambda: leaf.sum().backward()}, [leaf])
    contest.rows(repeats=2)
    assert leaf.grad is None
