"""A run: settings, model and loss. On disk: weights that load without pickle, and the settings beside them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from alignment import ProgressiveAlignment
from encoders.state import first_difference, load_encoder, read_weights, write_weights
from encoders.trunks import NO_WEIGHTS, copied
from eval.fingerprint import ROUNDED_TOLERANCE, TOLERANCE, Fingerprint, check, fingerprint
from kernels.errors import UserError
from kernels.parsing import parse_json
from mm.artifacts.adapter import Adapted, is_adapter, load_adapter, read_adapted
from mm.artifacts.probe import probe
from mm.artifacts.settings import settings_from_dict
from mm.artifacts.upgrade import upgrade_config, upgrade_state
from mm.compress.integers import Packed
from mm.compress.lora import merge_and_unload
from mm.compress.nf4 import dequantize
from mm.compress.quantize import (
    QATConfig,
    file_of,
    pack_state,
    packed_of,
    places,
    quantize_activations,
    unpack_state,
)
from mm.config import AlignConfig, encoders_of
from mm.files import check_sha256, sha256, write_json
from mm.modalities import build_encoder, pairs_of
from mm.model.multimodal import MultimodalModel

WEIGHTS = "model.safetensors"
"""A run's tensors, in its folder."""
VOCABULARY = "encoders.text.trunk.vocabulary"
"""The observed tokens, of a scratch trunk."""
WRITTEN = "causal.vocabulary"
"""The same, of another trunk, in a model that writes."""
TERMS = "terms.sequences"
TEXT = "text"
"""The folder in that of a run from a hub: configuration and tokenizer of its hf/ trunk."""
REMEDY = "use the code that wrote it (the commit is in its result.json), or train it again"


@dataclass
class Run:
    """Everything that is trained, saved, published and served.

    compression: the bits in which its weights are stored; None for float32. packed: those weights as they were read,
    by name.
    """

    config: AlignConfig
    model: MultimodalModel
    loss: ProgressiveAlignment
    compression: QATConfig | None = None
    packed: dict[str, Packed] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device) -> "Run":
        """Model and loss on a device."""
        self.model.to(device)
        self.loss.to(device)
        return self

    def eval(self) -> "Run":
        """Model and loss in evaluation mode."""
        self.model.eval()
        self.loss.eval()
        return self

    def fingerprint(self) -> Fingerprint:
        """What the model makes of the probe batch, on the CPU whatever it was trained on: readers compare theirs."""
        device = self.device
        self.model.cpu()
        found = fingerprint(lambda: probe(self.model, encoders_of(self.config)))
        self.model.to(device)
        return found

    def check_fingerprint(self, stored: Fingerprint) -> None:
        """Raises FingerprintError where the model behaves differently from what is stored."""
        rounds = self.compression is not None and self.compression.rounds_activations
        tolerance = ROUNDED_TOLERANCE if rounds else TOLERANCE
        check(stored, lambda: probe(self.model, encoders_of(self.config)), tolerance)

    def state_dict(self) -> dict[str, Tensor]:
        """The model's tensors, and the loss's under `loss.`."""
        state = dict(self.model.state_dict())
        for name, tensor in self.loss.state_dict().items():
            state[f"loss.{name}"] = tensor
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, naming the first difference, where the state is another model's."""
        if differs := first_difference(state, self.state_dict()):
            raise UserError(f"model.safetensors does not fit the settings in model.json: {differs}; {REMEDY}")
        model = {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}
        loss = {name.removeprefix("loss."): tensor for name, tensor in state.items() if name not in model}
        self.model.load_state_dict(model)
        self.loss.load_state_dict(loss)
        self.loss.clamp_scales()  # of an older run, which clamped where it read them


def build_run(config: AlignConfig, vocabulary: Tensor | None = None) -> Run:
    """An untrained run; vocabulary (V,) are the observed tokens, see `encoders.tokenizer.observed_vocabulary`: those
    that a scratch text trunk has a row of, and that a model with another one writes."""
    width = config.model.backbone.width
    settings = encoders_of(config)
    encoders = {m: build_encoder(m, settings[m], config.bottleneck, width, vocabulary) for m in settings}
    for modality, path in config.encoder_weights.items():
        if modality not in encoders:
            raise UserError(f"encoder_weights of {modality!r}: the model has {', '.join(encoders)}")
        load_encoder(encoders[modality], path)
    # A scratch trunk's table has no other rows.
    written = None if config.text.trunk == "scratch" else vocabulary
    model = MultimodalModel(config.model, encoders, written)
    loss = ProgressiveAlignment(config.loss, config.model.token_embedding, pairs_of(encoders))
    return Run(config, model, loss)


def vocabulary_of(state: Mapping[str, Tensor]) -> Tensor | None:
    """The observed tokens (V,) of a run's tensors by name, which `build_run` takes; None where it needs none."""
    return state.get(VOCABULARY, state.get(WRITTEN))


def run_for(config: AlignConfig, state: Mapping[str, Tensor]) -> Run:
    """A run whose tensors are those of a state, which is not loaded; nothing pretrained is fetched."""
    run = build_run(without_pretrained_weights(config), vocabulary_of(state))
    if TERMS in state:
        run.model.add_term_bias(state[TERMS])
    return run


def rebuilt(config: AlignConfig, state: Mapping[str, Tensor]) -> Run:
    """A run of these settings and tensors, in evaluation mode."""
    run = run_for(config, state)
    run.load_state_dict(state)
    return replace(run, config=config).eval()


def save_run(run: Run, folder: Path) -> None:
    """model.safetensors and model.json, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(stored_state(run), folder / WEIGHTS)
    described = {
        "kind": "align",
        "config": asdict(run.config),
        "fingerprint": run.fingerprint().as_json(),
        "sha256": sha256(folder / WEIGHTS),
    }
    if run.compression is not None:
        described["compression"] = asdict(run.compression)
    write_json(folder / "model.json", described)


def stored_state(run: Run) -> dict[str, Tensor]:
    """The tensors of a run's file. Of a compressed run the model gets the values that are stored."""
    if run.compression is None:
        return run.state_dict()
    where = places(run.model, run.compression.weight_bits)
    packed = pack_state(run.state_dict(), where, run.packed)
    run.packed = {name: value for name, value in packed.items() if isinstance(value, Packed)}
    tensors = file_of(packed)
    run.load_state_dict(unpack_state(tensors, run.packed))
    return tensors


def quantize_run(run: Run, bits: QATConfig) -> Run:
    """Give a run the weights that its file would hold in so many bits; its layers read as that file's do.

    Args:
        run: in float32, changed in place.
        bits: of weights and activations.

    Raises:
        ValueError: it is in fewer bits already: rounding twice is another model.
    """
    if run.compression is not None:
        raise UserError(f"compressed already, to {run.compression.weight_bits} bits: name the run it came from")
    quantize_activations(run.model, bits.activation_bits)
    run.compression = bits
    stored_state(run)
    return run


def load_run(folder: str | Path, adapters: tuple[Path, ...] = ()) -> Run:
    """Load a finished run, checked to behave as it did when it was saved. Nothing of the folder is executed.

    Args:
        folder: of the run, or of an adapter, which is put on the run that it was trained on.
        adapters: resolved folders of the adapters that wait for this run as their base, outermost first.

    Returns:
        the run in evaluation mode.

    Raises:
        ValueError: the folder holds no run that this code can load; the message names it.
    """
    folder = Path(folder)
    if is_adapter(folder):
        return load_adapted(folder, adapters)
    described = _described(folder)
    state = read_weights(folder / WEIGHTS)
    try:
        source = str(folder / "model.json")
        config = with_own_text(config_from_dict(upgrade_config(described["config"], source), source), folder)
        state = upgrade_state(state)
        run = run_for(config, state)
        if "compression" in described:
            run.compression = settings_from_dict(QATConfig, described["compression"], source)
            run.packed = packed_of(state, {name: tensor.shape for name, tensor in run.state_dict().items()})
            state = unpack_state(state, run.packed)
        run.load_state_dict(state)
        if run.compression is not None:
            quantize_activations(run.model, run.compression.activation_bits)
        check_sha256(folder / WEIGHTS, described.get("sha256"))
        run = replace(run, config=config)
        run.check_fingerprint(Fingerprint.of_json(described["fingerprint"]))
    except UserError as error:
        raise UserError(f"the run {folder} cannot be loaded: {error}") from error
    return run.eval()


def load_adapted(folder: Path, adapters: tuple[Path, ...] = ()) -> Run:
    """Load the run that an adapter was trained on, and merge the adapter into its weights.

    Args:
        folder: of the adapter.
        adapters: resolved folders of the adapters that wait for this one as their base, outermost first.

    Returns:
        a plain run in evaluation mode, whose settings are the base's but for the set that it was trained on.

    Raises:
        ValueError: the adapter does not say what its base is, the base is not there or another one, or the chain of
            bases comes back to an adapter instead of ending at a run.
    """
    adapted = read_adapted(folder)
    waiting = (*adapters, folder.resolve())
    if adapted.base.resolve() in waiting:
        raise UserError(f"the adapter {folder} has no run beneath it: its base {adapted.base} is an adapter of its own")
    try:
        run = load_run(adapted.base, waiting)
    except UserError as error:
        raise UserError(f"the adapter {folder} needs its base: {error}") from error
    return with_adapter(run, folder, adapted)


def with_adapter(run: Run, folder: Path, adapted: Adapted) -> Run:
    """Merge an adapter into the weights of the run that it was trained on.

    Args:
        run: its base, which is changed in place.
        folder: of the adapter.
        adapted: what its config.yaml says.

    Returns:
        a plain run in evaluation mode, whose settings are the base's but for the set that it was trained on.

    Raises:
        ValueError: the run is another one, or the adapter is damaged.
    """
    load_adapter(run, folder)
    merge_and_unload(run.model)
    dequantize(run.model)
    data = replace(run.config.data, karpathy=None, augment=None, **adapted.data)
    image = run.config.image
    if adapted.fit is not None:
        image = replace(image, fit=adapted.fit)  # type: ignore[arg-type]  # one of two words
    return replace(run, config=replace(run.config, data=data, image=image)).eval()


def without_pretrained_weights(config: AlignConfig) -> AlignConfig:
    """The same architecture without fetching or reading trunks: a run's own file holds every tensor."""
    parts: dict[str, Any] = {m: replace(settings, weights=NO_WEIGHTS) for m, settings in encoders_of(config).items()}
    return replace(config, encoder_weights={}, **parts)


def with_own_text(config: AlignConfig, folder: Path) -> AlignConfig:
    """The settings of a run whose folder may hold the files of its text trunk, which are then read instead of a hub."""
    own = folder / TEXT
    if not own.is_dir() or not config.text.trunk.startswith("hf/"):
        return config
    return replace(config, text=replace(config.text, trunk=copied(config.text.trunk, own.resolve())))


def config_from_dict(values: Any, source: str = "settings") -> AlignConfig:
    """asdict(config) -> config, with every name and type checked as on the command line; `source` names the file.

    Raises UserError naming a setting that this code does not know, or whose value it does not take.
    """
    try:
        return settings_from_dict(AlignConfig, values, source)
    except UserError as error:
        raise UserError(f"{error}; {REMEDY}") from error


def write_config(config: Any, folder: Path) -> None:
    """config.yaml, readable by `--config`, of any dataclass of settings. Tuples are written as lists."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = json.loads(json.dumps(asdict(config)))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))


def _described(folder: Path) -> dict:
    """The content of model.json."""
    path = folder / "model.json"
    if not (folder / WEIGHTS).is_file() or not path.is_file():
        raise UserError(f"{folder} holds no finished run: expected model.safetensors and model.json in it")
    try:
        described = parse_json(path.read_bytes(), str(path))
    except UserError as error:
        raise UserError(f"{error}: {REMEDY}") from error
    kind = described.get("kind") if isinstance(described, dict) else None
    if kind != "align":
        raise UserError(f"{folder} is a {kind} run: this needs one of scripts/train_align.py")
    if absent := {"config", "fingerprint"} - described.keys():
        raise UserError(f"{path} has no {min(absent)}: {REMEDY}")
    return described
