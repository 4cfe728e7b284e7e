"""finetune as a user runs it: a run is adapted by either strategy, and what it forgot stands beside what it learned."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mm
from mm.artifacts.adapter import load_adapter
from mm.artifacts.probe import probe
from mm.artifacts.run import load_run, save_run
from mm.config import encoders_of
from mm.data import open_split
from mm.data.coco import write_coco
from mm.data.scenes import write_scenes
from mm.infer.embedder import Embedder


@pytest.fixture
def adapt(script: Callable[..., None], run: Path, sets: tuple[Path, Path], tmp_path: Path) -> Callable[..., Path]:
    """adapt(*words) -> the adapted run's folder."""

    def start(*words: object) -> Path:
        rank = () if "full" in words else ("--lora.rank", 4)
        script(
            "finetune.py",
            "--run",
            run,
            "--data.root",
            sets[1],
            "--runs",
            tmp_path,
            "--name",
            "adapted",
            *rank,
            "--train.steps",
            4,
            "--train.batch_size",
            8,
            "--train.evaluate_every",
            2,
            "--train.precision",
            "fp32",
            "--train.accelerator",
            "cpu",
            *words,
        )
        return tmp_path / "adapted"

    return start


def adaptation(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())["adaptation"]


def changed(folder: Path, run: Path) -> set[str]:
    """Names of the tensors that differ from the base's."""
    now, was = (load_file(f / "model.safetensors") for f in (folder, run))
    assert now.keys() == was.keys()
    return {name for name in now if not torch.equal(now[name], was[name])}


def test_a_small_set_gets_adapters_and_the_result_says_what_they_cost(
    adapt: Callable[..., Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    folder = adapt("--optim.learning_rate", 0.05)
    found, said = adaptation(folder), capsys.readouterr().out
    assert found["strategy"] == "lora" and found["trainable"] == 2 * 2 * 2 * 2 * 4 * 32
    assert found["before"].keys() == found["after"].keys() == {"domain", "general"}
    assert found["peak_memory_gib"] > 0 and found["minutes"] > 0 and found["selected"]["metric"] == "RSUM"
    assert said.index("lora for 16 images: 2,048 trainable parameters, about") < said.index("domain RSUM:")
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed(folder, run))
    load_run(folder)
    assert "adapted   backbone.blocks.0.self_attention.q_proj.weight 32×32" in (folder / "coverage.txt").read_text()


def test_the_adapter_on_the_base_is_the_adapted_run(adapt: Callable[..., Path], run: Path) -> None:
    pytest.importorskip("peft")
    folder = adapt("--strategy", "lora", "--lora.targets", "[v_proj,w_in]", "--optim.learning_rate", 0.05)
    base, adapted = load_run(run), load_run(folder)
    load_adapter(base, folder / "adapter")
    for block, other in zip(base.model.backbone.blocks, adapted.model.backbone.blocks, strict=True):
        torch.testing.assert_close(block.moe.w_in, other.moe.w_in, atol=1e-5, rtol=0)
    assert any(name.endswith("w_in") for name in changed(folder, run))


def test_packed_weights_are_measured_and_unpacked_in_the_run(adapt: Callable[..., Path], run: Path) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    folder = adapt("--strategy", "qlora", "--general", "false")
    found = adaptation(folder)
    bits = {row["group"]: row["bits"] for row in found["ledger"]}
    assert bits["experts"] < 16 and bits["router"] == 32 and found["after"].keys() == {"domain"}
    assert any(name.endswith("w_out") for name in changed(folder, run))
    base, adapted = load_run(run), load_run(folder)
    load_adapter(base, folder / "adapter")
    for name in ("image", "text"):
        found, expected = (probe(r.model, encoders_of(r.config))[name] for r in (base, adapted))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("strategy", ["lora", "qlora"])
def test_an_adapter_without_the_run_around_it_is_evaluated_and_embeds(
    adapt: Callable[..., Path], script: Callable[..., None], run: Path, tmp_path: Path, strategy: str
) -> None:
    """Read with its base, it is the adapted run, and knows which set that was trained on."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    learned = ["--optim.learning_rate", 0.05, "--lora.targets", "[v_proj,w_in]", "--general", "false"]
    folder = adapt("--strategy", strategy, *learned)
    whole = load_run(folder)
    images = [torch.full((32, 32, 3), shade, dtype=torch.uint8).numpy() for shade in (0, 90, 200)]
    (folder / "model.safetensors").unlink()
    kept = mm.load(folder / "adapter")
    assert kept.run.config.data == whole.config.data
    expected = Embedder(whole).encode_image(images)
    torch.testing.assert_close(kept.encode_image(images), expected, atol=1e-5, rtol=0)
    assert (mm.load(run).encode_image(images) - expected).abs().max() > 1e-3
    script("eval_coco.py", "--run", folder / "adapter", "--rerank", 0, "--samples", 10)
    (found,) = (folder / "adapter").glob("eval-*.json")
    protocol = json.dumps(json.loads(found.read_text())["protocol"])
    assert "trained on own/train, domain/train" in protocol and "zero-shot" not in protocol


def test_an_adapted_run_is_not_zero_shot_on_the_set_of_its_base(
    adapt: Callable[..., Path], script: Callable[..., None], sets: tuple[Path, Path], tmp_path: Path
) -> None:
    """Nor on that set as it lies elsewhere, in another layout, under other captions; on a third set it is."""
    folder = adapt("--strategy", "full", "--general", "false")
    own = open_split(sets[0], "val")
    copied = []
    for i in range(len(own)):
        captions = {"captions": (f"a new caption {i}",), "caption_ids": (i,)}
        copied.append(replace(own.encoded(i), **captions))  # type: ignore[attr-defined]
    write_coco(copied, tmp_path / "copied", "val")
    third = write_scenes(tmp_path / "third", seed=5, sizes={"train": 8, "val": 8}, image_size=32)
    said = "trained on own/train, domain/train"
    for root, words in ((sets[0], said), (sets[1], said), (tmp_path / "copied", said), (third, f"zero-shot, {said}")):
        found = tmp_path / "found.json"
        script("eval_coco.py", "--run", folder, "--data.root", root, "--samples", 10, "--json", found)
        protocols = json.loads(found.read_text())["protocol"]
        assert {protocol["trained_on"] for protocol in protocols.values()} == {words}, root
    result = json.loads((folder / "result.json").read_text())
    assert result["protocol"]["val"]["trained_on"] == said


def test_a_domain_is_read_whole_whatever_the_run_had_for_its_own_set(
    adapt: Callable[..., Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_run(run)
    limited = replace(base.config.data, limit_images=9, limit_captions=1, captions=2)
    save_run(replace(base, config=replace(base.config, data=limited)), run)
    data = load_run(adapt("--strategy", "full", "--general", "false")).config.data
    assert (data.limit_images, data.limit_captions, data.captions) == (0, 0, 1)
    assert "16 of 16 images, 1 a step of all captions each" in capsys.readouterr().out
    data = load_run(adapt("--strategy", "full", "--data.limit_images", 10, "--general", "false")).config.data
    assert data.limit_images == 10 and "10 of 16 images" in capsys.readouterr().out


def test_an_adapter_is_the_base_of_a_further_adaptation(
    adapt: Callable[..., Path], script: Callable[..., None], run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    learned = ["--strategy", "lora", "--optim.learning_rate", 0.05, "--general", "false"]
    folder = adapt(*learned)
    (folder / "model.safetensors").unlink()
    adapt(*learned, "--run", folder / "adapter", "--name", "further")
    further, whole = load_run(tmp_path / "further" / "adapter"), load_run(tmp_path / "further")
    found, expected = (probe(r.model, encoders_of(r.config))["image"] for r in (further, whole))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_an_adapter_of_another_base_is_one_line(
    adapt: Callable[..., Path], refused: Callable[..., str], run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    folder = adapt("--strategy", "lora", "--general", "false")
    config = folder / "config.yaml"
    written = config.read_text()
    evaluated = ["eval_coco.py", "--run", folder / "adapter"]
    config.write_text(written.replace(str(run), "/nowhere"))
    assert "needs its base: /nowhere holds no finished run" in refused(*evaluated)
    config.unlink()
    assert "does not say what its base is: put the config.yaml" in refused(*evaluated)
    other = load_run(run)
    torch.nn.init.normal_(other.model.project["image"].linear.weight)
    save_run(other, run)
    config.write_text(written)
    assert "was trained on another base: " in refused(*evaluated)


def test_all_weights_train_but_those_that_are_frozen(adapt: Callable[..., Path], run: Path) -> None:
    folder = adapt(
        "--strategy",
        "full",
        "--train.freeze",
        "[encoders.*]",
        "--optim.rates",
        '{"backbone.*": 0.0}',
        "--train.ema",
        0.5,
        "--optim.learning_rate",
        0.01,
    )
    moved = changed(folder, run)
    assert "project.image.linear.weight" in moved
    assert not [n for n in moved if n.startswith("backbone.") and "router.bias" not in n]
    assert not [n for n in moved if n.startswith("encoders.") and "codebook" not in n and "quantizer" not in n]
    assert not (folder / "adapter").exists()


def test_training_stops_when_nothing_gets_better(adapt: Callable[..., Path]) -> None:
    pytest.importorskip("peft")
    words = ["--optim.learning_rate", 1e-12, "--train.steps", 8, "--train.evaluate_every", 1, "--patience", 2]
    folder = adapt(*words, "--general", "false")
    assert adaptation(folder)["selected"]["step"] == 1
    assert adaptation(folder)["after"] == pytest.approx(adaptation(folder)["before"], abs=0.1)


@pytest.mark.parametrize("strategy", ["qlora", "full"])
def test_a_killed_run_goes_on_to_the_same_weights(
    adapt: Callable[..., Path], killed_at: Callable[[int, Callable[[], object]], None], tmp_path: Path, strategy: str
) -> None:
    """What is kept so far and its average belong to the state; so do adapters on packed weights."""
    pytest.importorskip("bitsandbytes")
    words = [
        "--strategy",
        strategy,
        "--general",
        "false",
        "--optim.learning_rate",
        0.01,
        "--train.ema",
        0.5,
        "--train.checkpoint_every",
        2,
        "--train.steps",
        6,
    ]
    if strategy == "qlora":
        words += ["--lora.targets", "[v_proj,w_in]"]
    expected = load_file(adapt(*words) / "model.safetensors")
    whole = adaptation(tmp_path / "adapted")["selected"]
    (tmp_path / "adapted").rename(tmp_path / "whole")
    killed_at(5, lambda: adapt(*words))
    assert not (tmp_path / "adapted" / "result.json").exists()
    found = load_file(adapt(*words, "--resume", "true") / "model.safetensors")
    assert not [name for name, value in expected.items() if not torch.equal(value, found[name])]
    assert adaptation(tmp_path / "adapted")["selected"] == whole


def test_what_goes_on_keeps_its_settings(adapt: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("peft")
    words = ["--general", "false", "--strategy", "lora"]
    with pytest.raises(SystemExit):
        adapt(*words, "--resume", "true")
    assert "adapted holds no run: leave --resume out" in capsys.readouterr().err
    adapt(*words)
    with pytest.raises(SystemExit):
        adapt(*words, "--resume", "true", "--lora.alpha", 8)
    assert "was begun with lora.alpha=32.0, not 8.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--train.accelerator", "tpu"), "finetune: train.accelerator='tpu': choose auto, cpu or gpu"),
        (("--train.freeze", "[decoder.*]"), "freeze: no parameter is called 'decoder.*'; there are backbone.blocks*"),
        (("--optim.rates", '{"nothing": 0.1}'), "optim.rates: no parameter is called 'nothing'"),
        (("--rates", '{"backbone.*": 0.1}'), "--rates is now --optim.rates"),
        (("--train.freeze", "['*']"), "leaves nothing to train"),
        (("--metric", "BLEU"), "metric='BLEU' is not measured on domain/val: choose from image_to_text/R@1"),
        (("--strategy", "lora", "--lora.targets", "[querry]"), "'querry' is no linear layer nor expert weight"),
        (("--lora.rank", 40), "lora.rank=40 is larger than"),
        (("--data.root", "/nowhere"), "/nowhere does not exist"),
        (("--run", "/nowhere"), "/nowhere holds no finished run"),
    ],
)
def test_a_mistake_is_one_line(
    refused: Callable[..., str], run: Path, sets: tuple[Path, Path], tmp_path: Path, words: tuple, message: str
) -> None:
    pytest.importorskip("peft")
    found = refused(
        "finetune.py",
        "--run",
        run,
        "--data.root",
        sets[1],
        "--runs",
        tmp_path,
        "--lora.rank",
        4,
        "--train.steps",
        1,
        "--train.batch_size",
        8,
        "--train.accelerator",
        "cpu",
        *words,
    )
    assert message in found
