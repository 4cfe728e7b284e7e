"""Runs and adapters travel over a hub: what is pulled is what was pushed, and nothing of a stranger's is executed."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import mm
from mm.adapt.config import ContinueConfig, DomainData, FinetuneConfig
from mm.adapt.continued import continue_pretrain
from mm.adapt.finetune import finetune
from mm.artifacts.adapter import AdapterDescription, save_adapter
from mm.artifacts.run import Run, build_run, save_run
from mm.artifacts.seen import save_seen
from mm.batch import Batch
from mm.compress.lora import LoraConfig, adapter_tensors, attach
from mm.compress.quantize import QATConfig
from mm.config import AlignConfig
from mm.data.collection import Collection
from mm.evaluation.config import EvalCoco, RerankDepths
from mm.evaluation.depths import rerank_depths
from mm.evaluation.request import eval_coco
from mm.hub.pull import folder_of_run, pull
from mm.hub.push import push

ROOT = Path(__file__).parents[3]
RESULT = ROOT / "eval" / "results" / "default-on-scenes-val.json"
TEXTS = ["red circle", "two blue squares"]


@pytest.fixture(scope="session")
def made() -> dict[str, Path]:
    """Folders of runs: the first test that needs one leaves it here."""
    return {}


@pytest.fixture
def run(
    made: dict[str, Path],
    tiny: AlignConfig,
    tiny_run: Callable[..., Run],
    tiny_batch: Callable[..., Batch],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A tiny finished run whose settings name folders of this machine."""
    if "run" not in made:
        folder = tmp_path_factory.mktemp("hub") / "private" / "run"
        data = replace(tiny.data, root=str(folder.parent / "photos"), cache=str(folder.parent / "cache"))
        run = tiny_run(data=data)
        run.model(tiny_batch())
        save_run(run, folder)
        save_seen([Collection("photos/train", str(folder.parent / "photos"), "train")], folder)
        shutil.copy(RESULT, folder / "result.json")
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"pickled")
        made["run"] = folder
    return made["run"]


@pytest.fixture
def adapter(made: dict[str, Path], run: Path) -> Path:
    """An adapter of that run, in the folder of its fine-tuning."""
    pytest.importorskip("peft", reason="peft is not installed")
    if "adapter" not in made:
        config = LoraConfig(rank=4, targets=("q_proj", "v_proj", "w_in", "w_out"))
        base = mm.load_run(run)
        fingerprint = base.fingerprint()
        attach(base.model, config)
        torch.manual_seed(1)
        for tensors in adapter_tensors(base.model):
            for tensor in tensors.values():
                nn.init.normal_(tensor, std=0.2)
        folder = run.parent / "tuned" / "adapter"
        save_adapter(base.model, AdapterDescription(config, fingerprint), folder)
        data = {"root": str(run.parent / "paintings"), "train": "train", "val": "val", "audio_root": None}
        (folder.parent / "config.yaml").write_text(yaml.safe_dump({"run": str(run), "data": data}))
        shutil.copy(RESULT, folder.parent / "result.json")
        made["adapter"] = folder
    return made["adapter"]


@pytest.fixture
def pushed(hub: Any, run: Path) -> Any:
    """The hub, with the run in org/tiny."""
    if "org/tiny" not in hub.newest:
        push(run, "org/tiny", revision="v1")
    return hub


def vectors(folder: Path | str) -> torch.Tensor:
    return mm.load(folder, device="cpu").encode_text(TEXTS)


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_what_is_pulled_is_what_was_pushed(pushed: Any, run: Path, tmp_path: Path) -> None:
    expected = vectors(run)
    pull("org/tiny@v1", tmp_path / "pulled")
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(vectors(tmp_path / "pulled"), expected)
    assert torch.equal(vectors("hf://org/tiny"), expected)
    for name, content in pushed.files("org/tiny").items():
        assert name.endswith((".safetensors", ".json", ".yaml", ".md", ".gitattributes")), name
        assert str(run.parent).encode() not in content, f"{name} names a folder of this machine"
    assert mm.load_run(tmp_path / "pulled").config.data.root == "photos"


def test_a_compressed_run_travels_as_small_as_it_is(hub: Any, run: Path, tmp_path: Path) -> None:
    loaded = mm.load_run(run)
    loaded.compression = QATConfig(activation_bits=32, weight_bits=4)
    folder = tmp_path / "small"
    shutil.copytree(run, folder)
    save_run(loaded, folder)
    push(folder, "org/small")
    pulled = tmp_path / "pulled"
    pull("org/small", pulled)
    assert torch.equal(vectors(pulled), vectors(folder)) and not torch.equal(vectors(pulled), vectors(run))
    sizes = [(place / "model.safetensors").stat().st_size for place in (pulled, folder, run)]
    assert sizes[0] == sizes[1] < 0.6 * sizes[2]


def test_a_command_reads_a_version_that_it_pulls_once(pushed: Any, run: Path, tmp_path: Path) -> None:
    expected = vectors(run)
    commit = pushed.newest["org/tiny"]
    folder = folder_of_run("hf://org/tiny@v1", tmp_path / "runs")
    assert folder == tmp_path / "runs" / f"tiny-{commit[:12]}" and torch.equal(vectors(folder), expected)
    (folder / "eval-scenes-val.json").write_text("{}")
    assert folder_of_run("hf://org/tiny", tmp_path / "runs") == folder
    assert (folder / "eval-scenes-val.json").is_file(), "what a command left there is lost"
    assert folder_of_run(str(run), tmp_path / "runs") == run
    (folder / "hub.json").write_text('{"repository": "org/other", "revision": "main"}')
    with pytest.raises(ValueError, match=r"tiny-\w+ is not org/tiny@.*: move it"):
        folder_of_run("hf://org/tiny", tmp_path / "runs")


@pytest.mark.parametrize(
    "command",
    [
        lambda run, runs: eval_coco(EvalCoco(run)),
        lambda run, runs: rerank_depths(RerankDepths(run)),
        lambda run, runs: finetune(FinetuneConfig(run, DomainData("nowhere"), runs=runs)),
        lambda run, runs: continue_pretrain(ContinueConfig(run, DomainData("nowhere"), runs=runs)),
    ],
)
def test_commands_take_a_run_of_a_hub(
    command: Callable[[str, str], None], pushed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"photos|nowhere"):  # the run was pulled and read, its data are not here
        command("hf://org/tiny", "runs")
    assert [path.name for path in Path("runs").glob("tiny*")] == [f"tiny-{pushed.newest['org/tiny'][:12]}"]


def test_the_card_says_what_the_result_says(pushed: Any) -> None:
    text = pushed.files("org/tiny")["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    words = yaml.safe_load(front)
    result = json.loads(RESULT.read_text())
    assert words["license"] == "apache-2.0" and words["library_name"] == "mm-align" and "audio" in words["tags"]
    assert words["pipeline_tag"] == "zero-shot-image-classification" and words["datasets"] == ["photos", "scenes"]
    (index,) = words["model-index"]
    figures = {m["type"]: m["value"] for each in index["results"] for m in each["metrics"]}
    recall = result["metrics"]["image_to_text/R@1"]
    low, high = result["intervals"]["image_to_text/R@1"]
    assert figures["val/image_to_text/r_at_1"] == recall
    assert f"{recall:.1f} ({low:.1f} to {high:.1f})" in body
    for said in (result["commit"], "from scratch", "| experts |", 'mm.load("hf://org/tiny@v1")'):
        assert said in body
    assert "nan" not in body


def test_without_a_connection_the_cache_serves(
    pushed: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = vectors(run)
    mm.load("hf://org/tiny", device="cpu")
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        asked = len(pushed.asked)
        assert torch.equal(vectors("hf://org/tiny"), expected) and len(pushed.asked) == asked
        with pytest.raises(ValueError, match=r"^pull org/tiny@v1: not all of it is in the cache"):
            mm.load("hf://org/tiny@v1")
        with pytest.raises(ValueError, match=r"^push org/new: HF_HUB_OFFLINE is set: unset it$"):
            push(run, "org/new")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, logger="mm.hub.pull"):
        assert torch.equal(vectors("hf://org/tiny"), expected)
    assert "no connection to http://127.0.0.1:9" in caplog.text and "its copy in the cache is used" in caplog.text


def test_an_interrupted_pull_goes_on_and_leaves_nothing_half(
    pushed: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    pushed.cut.add("model.safetensors")  # the connection breaks after half of it
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr("mm.hub.pull.shutil.copyfile", killed)
        pull("org/tiny", tmp_path / "pulled")
    assert not pushed.cut and not (tmp_path / "pulled").exists() and not list(tmp_path.glob(".pulled*"))
    (weights,) = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
    weights.unlink()  # as a download leaves it that was killed
    with monkeypatch.context() as offline, pytest.raises(ValueError, match="not all of it is in the cache"):
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        mm.load("hf://org/tiny", device="cpu")
    pull("org/tiny", tmp_path / "pulled")
    assert torch.equal(vectors(tmp_path / "pulled"), vectors(run))


def test_tampered_weights_are_refused_by_name(pushed: Any, tmp_path: Path) -> None:
    files = dict(pushed.files("org/tiny"))
    content = bytearray(files["model.safetensors"])
    content[-4] ^= 1
    pushed.put("org/tampered", files | {"model.safetensors": bytes(content)})
    with pytest.raises(
        ValueError, match=r"^org/tampered@\w{40} is not what was pushed, .*: .*model\.safetensors is damaged"
    ):
        pull("org/tampered", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def asking(files: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
    return files | {name: json.dumps(change(json.loads(files[name]))).encode()}


STRANGERS: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "code": (lambda f: f | {"modeling.py": b"1 / 0"}, r"it holds code \(modeling\.py\)"),
    "code in a folder": (lambda f: f | {"text/Tokenizer.PY": b"1 / 0"}, r"it holds code \(text/Tokenizer\.PY\)"),
    "pickles": (lambda f: f | {"pytorch_model.bin": b"\x80"}, r"pytorch_model\.bin may hold pickles"),
    "a way out": (lambda f: f | {"../outside.json": b"{}"}, r"the name '\.\./outside\.json' leads out of its folder"),
    "auto_map": (lambda f: f | {"text/config.json": b'{"a": [{"auto_map": {}}]}'}, r"text/config\.json asks for code"),
    "class_path": (
        lambda f: asking(
            f, "model.json", lambda m: m | {"config": m["config"] | {"data": {"class_path": "os.system"}}}
        ),
        r"model\.json asks for code \(class_path\)",
    ),
    "class_path in YAML": (lambda f: f | {"config.yaml": b"data: {class_path: x.Y}"}, r"config\.yaml asks for code"),
    "another project": (lambda f: {"config.json": b"{}", "model.safetensors": b""}, "holds neither a run"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_a_repository_that_would_execute_code_is_refused(pushed: Any, tmp_path: Path, case: str) -> None:
    change, words = STRANGERS[case]
    name = f"org/{re.sub(r'[^a-z]', '_', case)}"
    pushed.put(name, change(dict(pushed.files("org/tiny"))))
    with pytest.raises(ValueError, match=f"^{name}.*{words}"):
        pull(name, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists() and not list(tmp_path.rglob("*.[pP][yY]")) + list(tmp_path.rglob("*.bin"))


def test_what_goes_wrong_is_one_line_with_the_remedy(
    pushed: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^pull org/gone: there is none of that name, or it is private: .*auth login"):
        pull("org/gone", tmp_path / "pulled")
    with pytest.raises(ValueError, match=r"^pull org/tiny@v9: it has no such revision"):
        pull("org/tiny@v9", tmp_path / "pulled")
    with pytest.raises(ValueError, match=r"^push org/tiny: there is a version v1 already"):
        push(run, "org/tiny", revision="v1")
    with pytest.raises(ValueError, match=r"a version is named with --revision v2"):
        push(run, "org/tiny@v2")
    with pytest.raises(ValueError, match=r"cache is there already"):
        (tmp_path / "cache").mkdir(exist_ok=True)
        pull("org/tiny", tmp_path / "cache")
    for written in ("tiny", "org/../x", "org/tiny@../x", "org/tiny@a/../b", "org/a/b", "org/tiny@", "/etc/passwd"):
        with pytest.raises(ValueError, match="is no repository: write org/name or org/name@revision"):
            pull(written)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ValueError, match=r"^push org/new: .*(refuses it \(401\)|it is private).*auth login"):
        push(run, "org/new")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"^push org/new: no connection to http://127\.0\.0\.1:9 .*check the network"):
        push(run, "org/new")


def test_an_adapter_is_a_repository_on_its_base(pushed: Any, run: Path, adapter: Path, tmp_path: Path) -> None:
    expected = vectors(adapter)
    with pytest.raises(ValueError, match=r"push its base .*run first, then name it: --base org/name"):
        push(adapter, "org/tuned")
    push(adapter, "org/tuned", base="org/tiny@v1")
    files = pushed.files("org/tuned")
    base = json.loads(files["base.json"])
    words = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert base == {"repository": "org/tiny", "revision": pushed.tags["org/tiny"]["v1"]}
    assert words["base_model"] == "org/tiny" or words["base_model"] == ["org/tiny"]
    assert words["base_model_relation"] == "adapter" and words["datasets"] == ["paintings", "scenes"]
    assert "model.safetensors" not in files and not [n for n, c in files.items() if str(run.parent).encode() in c]
    assert torch.equal(vectors("hf://org/tuned"), expected)
    pull("org/tuned", tmp_path / "pulled")
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(vectors(tmp_path / "pulled"), expected)
    push(tmp_path / "pulled", "org/again")  # the pulled one knows its base
    assert json.loads(pushed.files("org/again")["base.json"]) == base


def test_an_adapter_of_another_base_is_not_pushed(pushed: Any, run: Path, adapter: Path, tiny_run: Any) -> None:
    other = tiny_run()
    nn.init.normal_(other.model.project["text"].linear.weight)
    save_run(other, run.parent / "other")
    shutil.copy(RESULT, run.parent / "other" / "result.json")
    push(run.parent / "other", "org/other")
    with pytest.raises(ValueError, match=r"org/other is not the base .*/run of .*/adapter: these weights"):
        push(adapter, "org/wrong", base="org/other")
    assert "org/wrong" not in pushed.newest


def test_a_new_version_replaces_the_files_of_the_old_one(pushed: Any, run: Path, tmp_path: Path) -> None:
    push(run, "org/twice")
    pushed.files("org/twice")["experts.safetensors"] = b"of an older version"
    pushed.files("org/twice")["diagram.png"] = b"of the owner"
    push(run, "org/twice", revision="v2")
    assert "experts.safetensors" not in pushed.files("org/twice") and "diagram.png" in pushed.files("org/twice")
    pull("org/twice@v2", tmp_path / "pulled")
    assert not list(tmp_path.rglob("diagram.png"))  # what nobody reads is not fetched


def test_a_text_trunk_brings_its_tokenizer(
    hub: Any, tiny: AlignConfig, tmp_path: Path, write_bert: Callable[[Path], None]
) -> None:
    write_bert(tmp_path / "bert")
    text = replace(tiny.text, trunk=f"hf/{tmp_path / 'bert'}")
    model = replace(tiny.model, modalities=("image", "text"), generate=True)
    torch.manual_seed(0)
    vocabulary = torch.tensor([3, 5, 6, 8])
    save_run(build_run(replace(tiny, text=text, model=model), vocabulary), tmp_path / "run")
    shutil.copy(RESULT, tmp_path / "run" / "result.json")
    embedder = mm.load(tmp_path / "run", device="cpu")
    expected = embedder.encode_text(["a cat on a mat"])
    written = embedder.generate(prefix="a")
    assert set(written.split()) <= {"a", "cat", "mat"}  # what the vocabulary has
    push(tmp_path / "run", "org/bert")
    shutil.rmtree(tmp_path / "bert")
    shutil.rmtree(tmp_path / "run")
    pull("org/bert", tmp_path / "pulled")
    shutil.rmtree(tmp_path / "cache")
    pulled = mm.load(tmp_path / "pulled", device="cpu")
    assert torch.equal(pulled.encode_text(["a cat on a mat"]), expected)
    assert pulled.generate(prefix="a") == written
    assert torch.equal(pulled.run.model.causal.vocabulary, vocabulary)
    push(tmp_path / "pulled", "org/bert_again")
    for name, content in hub.files("org/bert_again").items():
        assert content == hub.files("org/bert")[name] or name == "README.md", name


def test_the_command_pushes_and_pulls_in_processes_of_their_own(hub: Any, run: Path, tmp_path: Path) -> None:
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    program = (
        "import sys; from mm.commands import main\n"
        f"main(['push', {str(run)!r}, 'org/typed', '--revision', 'v1', '--private', 'true'])\n"
        f"main(['pull', 'org/typed@v1', '--out', {str(tmp_path / 'pulled')!r}])\n"
        f"main(['pull', 'org/gone'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False
    )
    sha = hub.newest["org/typed"]
    first, second = done.stdout.splitlines()
    assert re.fullmatch(rf"pushed org/typed@v1: \d+ files, \d+\.\d MB, commit {sha[:12]}", first)
    assert second == f"pulled org/typed@{sha} into {tmp_path / 'pulled'}"
    assert "HTTP Request" not in done.stderr
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(
        "mm-align pull: pull org/gone: there is none"
    )
    assert asdict(mm.load_run(tmp_path / "pulled").config)["data"]["root"] == "photos"
