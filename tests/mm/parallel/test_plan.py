"""The planner: what a run's own model gives, in which order, and how near published runs are."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from kernels.errors import UserError
from mm.model.backbone import BackboneConfig
from mm.model.multimodal import ModelConfig
from mm.parallel.cost import Rates, Workload
from mm.parallel.layout import ParallelConfig
from mm.parallel.plan import PlanConfig, command, plan, planned, stored, workload
from mm.parallel.published import FITTED, compared, fit, read_rows

PUBLISHED = Path(__file__).parents[4] / "shared" / "plan_rows.csv"
TABLE = """\
model,parameters,active_parameters,gpus,gpu,layout,sequence,local_batch,precision,technique,tokens_per_second_per_gpu,memory_gib,source
Llama-3.1-8B,8.03e9,8.03e9,8,same,fsdp8,8192,2,bf16,selective checkpointing,{0},80,table 1
Llama-3.1-8B,8.03e9,8.03e9,8,same,fsdp8,8192,2,fp8,compile full checkpointing,{1},60,table 2
Llama-3.1-8B,8.03e9,8.03e9,8,same,fsdp8,8192,2,fp8,compile,{2},60,table 2
Qwen3-30B-A3B,30.5e9,3.3e9,8,H100,ep8 stock all-to-all,not stated,not stated,bf16,torchtitan,{3},,elsewhere
"""


@pytest.fixture(scope="module")
def config() -> PlanConfig:
    two_blocks = ModelConfig(backbone=BackboneConfig(layers=2))
    return PlanConfig(gpus=8, model=two_blocks)


@pytest.fixture(scope="module")
def load(config: PlanConfig) -> Workload:
    return workload(config)


def test_a_model_is_counted_without_being_built(config: PlanConfig, load: Workload) -> None:
    moe = config.model.backbone.moe
    layer = 3 * moe.num_experts * moe.hidden * config.model.backbone.width
    assert load.experts == config.model.backbone.layers * layer
    assert load.tokens % config.train.batch_size == 0 and load.recompute == "none"


def test_layouts_that_fit_come_first_and_the_fastest_before_all(config: PlanConfig, load: Workload) -> None:
    found = planned(config, load)
    steps = [each.estimate.step for each in found]
    assert steps == sorted(steps) and all(each.fits for each in found)
    few = planned(replace(config, memory=found[0].estimate.memory / 1e9 * 0.999), load)
    fitting = [each.fits for each in few]
    assert fitting == sorted(fitting, reverse=True) and not all(fitting)


def test_what_cannot_be_divided_is_one_line(config: PlanConfig, load: Workload) -> None:
    with pytest.raises(UserError, match=r"7 GPUs cannot be divided for this run: .* batch of 64"):
        planned(replace(config, gpus=7), load)


def test_the_command_names_the_layout_and_the_machines(config: PlanConfig, load: Workload) -> None:
    said = command(replace(config, gpus=32), ParallelConfig.of_word("fsdp16-tp2"))
    assert "torchrun --nnodes 4 --nproc-per-node 8" in said and "--train.strategy fsdp16-tp2" in said
    ranked = planned(replace(config, rows=99), load)
    for writes in (False, True):
        asked = replace(config, rows=99, model=replace(config.model, generate=writes))
        for row in stored(asked, load, ranked)["rows"]:
            assert row["trains"] == (not writes or "pp" not in row["layout"])


def test_a_plan_is_shown_and_stored(config: PlanConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(replace(config, json=tmp_path / "plan.json"))
    found = yaml.safe_load((tmp_path / "plan.json").read_text())
    said = capsys.readouterr().out
    assert found["kind"] == "plan" and len(found["rows"]) == config.rows
    assert "predicted" in said and found["rows"][0]["layout"] in said and found["command"] in said


def test_rows_of_a_table_are_read_with_what_they_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(TABLE.format(5000, 6000, 6500, 10000))
    rows = read_rows(path)
    assert [row.load.recompute for row in rows] == ["selective", "full", "full", "selective"]
    assert [sorted(row.load.techniques) for row in rows] == [
        ["eager", "sequence_parallel"],
        ["fp8", "sequence_parallel"],
        ["fp8", "sequence_parallel"],
        ["sequence_parallel", "stock"],
    ]
    assert [str(row.layout) for row in rows] == ["fsdp8", "fsdp8", "fsdp8", "fsdp8-ep8"]
    assert rows[3].load.experts == 29e9 and rows[3].memory is None


def test_a_fit_finds_the_rates_that_made_the_rows(tmp_path: Path) -> None:
    truth = Rates(products=0.5, eager=0.7, fp8=1.5, links=0.5, stock=0.1)
    path = tmp_path / "rows.csv"
    path.write_text(TABLE.format(1, 1, 1, 1))
    made = [replace(row, tokens=row.predicted(truth)[0], memory=row.predicted(truth)[1]) for row in read_rows(path)]
    found = fit(made)
    for row in made:
        assert row.predicted(found)[0] == pytest.approx(row.tokens, rel=0.05)


def test_the_rates_are_those_of_the_published_rows() -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"{PUBLISHED.name} of published runs is not here")
    assert asdict(fit([read_rows(PUBLISHED)[index] for index in FITTED])) == pytest.approx(asdict(Rates()), rel=0.02)
    found = compared(PUBLISHED)
    assert found["error_tokens"] < 20 and found["error_memory"] < 20
