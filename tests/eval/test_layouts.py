"""Tables of layouts: what was measured, what was predicted, and how far predictions are off."""

from eval.layouts import (
    bytes_rows,
    checkpoint_rows,
    kills_said,
    layout_rows,
    plan_rows,
    published_errors,
    published_rows,
    saved,
)

LAYOUT = {
    "layout": "fsdp2-ep2",
    "experts": 128,
    "checkpoint": True,
    "difference": {"gradient": 3e-6, "value": 2e-7, "weight": 1e-5},
    "bytes": {"parameters": 30_000_000, "moments": 20_000_000},
    "bytes_alone": {"parameters": 60_000_000, "moments": 40_000_000},
    "predicted": {"parameters": 30e6, "gradients": 0.0, "moments": 22e6, "activations": 9e6},
    "activations": 7_000_000,
    "activations_alone": 14_000_000,
    "seconds": 0.5,
    "seconds_alone": 0.25,
    "samples_per_second": 16.0,
}


def test_a_layout_says_how_far_it_is_and_what_it_holds() -> None:
    (row,) = layout_rows({"rows": [LAYOUT]})
    assert row == ["fsdp2-ep2, 128 experts, recomputed", "3e-06", "2e-07", "1e-05", "50.0 %", "0.50 (0.25)", "16"]
    assert saved([LAYOUT], "fsdp2-ep2") == 50.0 and saved([LAYOUT], "fsdp4") is None


def test_bytes_stand_beside_the_formula_and_one_process() -> None:
    plain = {**LAYOUT, "checkpoint": False}
    unmeasured = {name: value for name, value in plain.items() if name != "predicted"}
    assert bytes_rows({"rows": [LAYOUT, unmeasured]}) == []
    assert bytes_rows({"rows": [plain]}) == [["fsdp2-ep2, 128 experts", "50.0", "52.0", "7.0", "14.0"]]


def test_checkpoints_and_kills_say_what_came_back() -> None:
    read = [
        {"saved": "1", "loaded": word, "tensors": 9, "differ": differ} for word, differ in (("1", []), ("pp2", ["x"]))
    ]
    killed = {"layout": "pp2", "rank": 1, "saving": True, "step": 3, "exact": True, "noticed": False}
    result = {"checkpoints": read, "kills": [killed, killed | {"saving": False, "exact": False}]}
    assert checkpoint_rows(result) == [["written under", "1", "pp2"], ["1", "9 of 9", "8 of 9"]]
    assert "1 of 2 runs left" in kills_said(result) and "in 1 a checkpoint" in kills_said(result)


def test_a_plan_says_what_a_gpu_holds_and_waits_for() -> None:
    sizes = {"parameters": 1e9, "gradients": 1e9, "moments": 2e9, "gathered": 5e8, "activations": 3e9, "logits": 1e9}
    seconds = {"products": 1.0, "tensor parallel": 0.25, "bubble": 0.0, "optimizer": 0.1}
    planned = {"layout": "tp2", "bytes": sizes, "memory": 8.5e9, "seconds": seconds, "step": 1.35}
    (row,) = plan_rows({"rows": [planned | {"efficiency": 0.815, "trains": True}]})
    assert row == ["tp2", "4.0", "0.5", "4.0", "8.5", "1.35", "tensor parallel 0.25", "82 %", "yes"]


def test_a_published_run_stands_beside_its_prediction() -> None:
    shown = {"run": "8B", "layout": "fsdp8", "fitted": False, "tokens": 5000.0, "predicted_tokens": 5500.0}
    with_memory = shown | {"fitted": True, "memory": 80 * 2**30, "predicted_memory": 70 * 2**30}
    rows = published_rows({"rows": [shown, with_memory]})
    assert rows[0] == ["8B", "fsdp8", "5,000, 5,500 (1.10 ×)", "—", "held out"]
    assert rows[1][3:] == ["80.0, 70.0", "fitted"]
    errors = {"error_tokens": 8.4, "largest_error_tokens": 30, "error_memory": 9, "largest_error_memory": 19}
    assert "speed is 8 % off on average, at most 30 %; memory 9 %, at most 19 %" in published_errors(errors)
