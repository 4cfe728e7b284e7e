"""`mm-align export`: a finished run as files that an engine executes without this package, checked before they stay."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from eval.fingerprint import ROUNDED_TOLERANCE, Fingerprint, check
from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.artifacts.run import Run, load_run
from mm.compress.integers import Packed
from mm.compress.quantize import HALF, pack_state, places
from mm.config import encoders_of
from mm.export.aot_inductor import open_aoti, write_aoti
from mm.export.executorch import PLANNED, open_executorch, write_executorch
from mm.export.graph import BATCH, Graph, graphs_of
from mm.export.onnx_integers import prepare_onnx
from mm.export.onnx_runtime import OnnxExperts, open_onnx, write_onnx
from mm.export.tensorrt import write_tensorrt
from mm.export.xnnpack_integers import prepare_xnnpack
from mm.files import sha256, write_json
from mm.modalities import build_readers
from mm.model.inference import DenseExperts, Experts, prepare
from mm.model.multimodal import MultimodalModel

Call = Callable[..., Iterable[Any]]
"""An exported graph: tensors, in the order of the graph's inputs -> its outputs."""
DESCRIPTION = "export.json"


@dataclass(frozen=True)
class Engine:
    """What executes exported files.

    Args:
        name: in words.
        bits: of weights that it has.
        write: a graph, into a folder -> its file.
        open: that file -> a function.
        experts: makes the body of a mixture's experts in float32.
        integers: a model, its packed weights, whether layers round what they read -> the model in fewer bits; None if
            it has 32 alone.
        batch: rows that its files take.
    """

    name: str
    bits: tuple[int, ...]
    write: Callable[[Graph, Path], Path]
    open: Callable[[Path], Call]
    experts: Experts = DenseExperts
    integers: Callable[[MultimodalModel, Mapping[str, Packed], bool], MultimodalModel] | None = None
    batch: Dim = BATCH


ENGINES = {
    "onnx": Engine("ONNX Runtime", (32, 8, 4), write_onnx, open_onnx, OnnxExperts, prepare_onnx),
    "aoti": Engine("AOTInductor", (32,), write_aoti, open_aoti),
    "executorch": Engine(
        "ExecuTorch", (32, 8), write_executorch, open_executorch, integers=prepare_xnnpack, batch=PLANNED
    ),
    "tensorrt": Engine("TensorRT", (32,), write_tensorrt, open_onnx),
}
TOLERANCES = {32: 1e-3, 8: ROUNDED_TOLERANCE, 4: 0.3}
"""By bits the largest error of a probe's output, relative to its root mean square: of rounding, or of half precision,
in which a fingerprint is kept. Another activation or tokenizer is off by more than eight bits are."""


def export(
    run: Path,
    to: Literal["onnx", "aoti", "executorch", "tensorrt"] = "onnx",
    bits: Literal[32, 8, 4] | None = None,
    out: Path | None = None,
    graphs: tuple[str, ...] = (),
) -> None:
    """Write what a run does as files for an engine, execute each, and keep them if they do what the run does.

    Args:
        run: folder of a finished run, or of an adapter whose base is where it was.
        to: the engine: onnx (ONNX Runtime), aoti (AOTInductor), executorch, or tensorrt, whose files are ONNX of
            standard operators; they are executed by ONNX Runtime on the CPU.
        bits: of the weights; by default those that the run is stored in, of a run in bfloat16 32.
        out: folder that is written, <run>/export-<engine>-<bits> by default; one that is there is replaced.
        graphs: which ones, such as '[encode_text]'; all by default.

    Raises:
        UserError: the engine has no such bits, an operation or a package is missing, or a file computes something else.
    """
    engine = ENGINES[to]
    loaded = load_run(run)
    bits = stored_bits(loaded) if bits is None else bits
    if bits not in engine.bits:
        have = ", ".join(map(str, engine.bits))
        raise UserError(f"--to {to} has no {bits}-bit weights here: it has {have}")
    place = out or run / f"export-{to}-{bits}"
    if place.exists() and not (place / DESCRIPTION).is_file():
        raise UserError(f"{place} is no export: name another folder by --out")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        rows = written(loaded, engine, bits, Path(folder), graphs)
        checked(fingerprint_of(run, loaded), rows, bits)
        write_json(Path(folder) / DESCRIPTION, described(run, loaded, to, bits, rows))
        if place.exists():
            shutil.rmtree(place)
        # Moved one by one: the temporary folder can be read by its owner alone.
        place.mkdir()
        for path in sorted(Path(folder).iterdir()):
            shutil.move(path, place / path.name)
    for name, row in rows.items():
        print(f"{place / row.path.name}: {row.bytes:,} bytes, off by {row.error:.2g} ({name})")


def stored_bits(run: Run) -> Literal[32, 8, 4]:
    """Bits of the integers that a run's weights are, or 32: no engine computes in bfloat16 here."""
    if run.compression is None or run.compression.weight_bits == HALF:
        return 32
    return run.compression.weight_bits


@dataclass(frozen=True)
class Exported:
    """A file that was written and executed: its bytes, its largest relative error, and what it made of the probe."""

    path: Path
    bytes: int
    error: float
    first: np.ndarray


def written(run: Run, engine: Engine, bits: int, folder: Path, asked: tuple[str, ...]) -> dict[str, Exported]:
    """Write and execute graphs.

    Args:
        run: which is not changed.
        engine: for which.
        bits: of the weights.
        folder: where files are written.
        asked: names of graphs; all where it is empty.

    Raises:
        UserError: there is no such graph.
    """
    model = model_for(run, engine, bits)
    known = list(graphs_of(run.config, model, engine.batch))
    names = [graph.name for graph in known]
    if unknown := set(asked) - set(names):
        raise UserError(f"--graphs {min(unknown)}: this run has {', '.join(names)}")
    eager = {graph.name: graph for graph in graphs_of(run.config, prepare(run.model, DenseExperts))}
    rows = {}
    for graph in known:
        if asked and graph.name not in asked:
            continue
        path = engine.write(graph, folder)
        found = [as_array(value) for value in engine.open(path)(*graph.named().values())]
        expected = [as_array(value) for value in eager[graph.name].eager()]
        errors = [relative_error(a, b) for a, b in zip(expected, found, strict=True)]
        rows[graph.name] = Exported(path, path.stat().st_size, max(errors), found[0])
    return rows


def model_for(run: Run, engine: Engine, bits: int) -> MultimodalModel:
    """A run's model as an engine executes it."""
    if engine.integers is None or bits == 32:
        return prepare(run.model, engine.experts)
    rounds = run.compression is None or run.compression.rounds_activations
    return engine.integers(run.model, packed_weights(run, bits), rounds)


def packed_weights(run: Run, bits: int) -> dict[str, Packed]:
    """The weights of a run that are stored in integers, by name; those that are integers already stay as they are."""
    state = pack_state(run.state_dict(), places(run.model, bits), run.packed)
    return {name: value for name, value in state.items() if isinstance(value, Packed)}


def checked(stored: Fingerprint, rows: Mapping[str, Exported], bits: int) -> None:
    """Compare what files made of the probe with what the model makes of it, and with what the run's fingerprint says.

    Raises:
        UserError: a file computes something else.
    """
    for name, row in rows.items():
        if not row.error <= TOLERANCES[bits]:
            raise UserError(
                f"{name} is off by {100 * row.error:.1f} % (allowed {100 * TOLERANCES[bits]:g} %): the engine computes"
                " something else than the model, or so few bits are not enough for it: export it in 32"
            )
    probed = {name.removeprefix("encode_"): row.first for name, row in rows.items()}
    there = {name: values for name, values in probed.items() if name in stored.outputs}
    kept = {name: values for name, values in stored.outputs.items() if name in there}
    shapes = {name: shape for name, shape in stored.shapes.items() if name in there}
    check(Fingerprint(kept, shapes), lambda: there, TOLERANCES[bits])


def fingerprint_of(folder: Path, run: Run) -> Fingerprint:
    """What is stored of a run; of an adapter, what its merged model makes of the probe."""
    path = folder / "model.json"
    if path.is_file():
        return Fingerprint.of_json(parse_json(path.read_bytes(), str(path))["fingerprint"])
    return run.fingerprint()


def described(folder: Path, run: Run, to: str, bits: int, rows: Mapping[str, Exported]) -> dict[str, Any]:
    """The content of export.json: what a program that uses the files needs to know."""
    files = {}
    for name, row in rows.items():
        files[name] = {"file": row.path.name, "bytes": row.bytes, "sha256": sha256(row.path), "error": row.error}
    settings = encoders_of(run.config)
    readers = {modality: reader.settings() for modality, reader in build_readers(settings).items()}
    return {
        "run": folder.resolve().name,
        "engine": to,
        "bits": bits,
        "torch": torch.__version__,
        "files": files,
        "readers": readers,
        "encoders": {modality: asdict(each) for modality, each in settings.items()},
    }


def as_array(value: Tensor | np.ndarray) -> np.ndarray:
    """A tensor or array, as float32."""
    return np.asarray(value.numpy() if isinstance(value, Tensor) else value, dtype=np.float32)


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """Root mean square of the difference over that of what was expected."""
    size = float(np.sqrt(np.mean(expected**2)))
    return float(np.sqrt(np.mean((found - expected) ** 2))) / max(size, 1e-6)
