"""Older runs: what settings, tensors and results were called before, listed once. What is loaded goes through here.

Everything is renamed from the words of commit a239565 on. What is no setting any more is dropped, and said where it
was not what the code does now.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from encoders.pretraining import NOT_STATED, pretraining
from eval.protocols import Protocol
from kernels.errors import UserError

logger = logging.getLogger(__name__)
MOVED_SETTINGS = {
    "model.backbone.moe.experts": "model.backbone.moe.num_experts",
    "model.backbone.moe.active": "model.backbone.moe.top_k",
    "loss.fine": "loss.filip",
    "loss.codes": "loss.code_match",
    "loss.match": "loss.itm",
    "loss.fine_rows": "loss.filip_rows",
    "loss.match_rows": "loss.itm_rows",
    "data.fit": "image.fit",
    "image.reconstruct_images": "bottleneck.reconstruct",
    "image.encoder_weights": "encoder_weights.image",
    "audio.encoder_weights": "encoder_weights.audio",
    "text.encoder_weights": "encoder_weights.text",
    "rates": "optim.rates",
    "pictures": "images",
}
"""Old name -> new name, of the settings of a run."""
FIXED_SETTINGS: dict[str, Any] = {
    "data.in_memory": None,
    "audio.mels": 64,
    "audio.window": 400,
    "audio.hop": 160,
    "audio.reconstruct_sounds": None,
    "text.reconstruct_tokens": None,
    "loss.moe": 1.0,
    "loss.shared_codes": 256,
    "schedule.ramp": None,
    "optim.betas": None,
    "eval.rerank_pairs": None,
    "bottleneck.gate": None,
    "bottleneck.quantizer.commitment": None,
    "bottleneck.quantizer.revive_below": None,
}
"""Settings that are no more, and what the code does now; None where that does not matter to a run that is done."""
MOVED_TENSORS = (
    (re.compile(r"^loss\.late\."), "loss.filip."),
    (re.compile(r"^loss\.codes\."), "loss.code_match."),
    (re.compile(r"\.term_strength$"), ".term_bias"),
)
ONE_ELEMENT = re.compile(r"^match_head\.(log_scale|bias)$|^loss\.(contrastive|filip)\.\w+\.(log_scale|bias)$")
"""Parameters that had no dimensions."""
MODALITIES = ("image", "audio", "text")
"""Of the runs of that time."""
RENAMED_KINDS = {"of pictures among": "of images among", "of sounds among": "of audio clips among"}
"""Words of the task of a zero-shot classification."""
WHOLE = ("optim.rates", "rates", "encoder_weights", "data.augment")
"""Settings whose value is a dict."""


def upgrade_config(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings of a run, nested, as any commit since a239565 wrote them -> as this code names them; one log line where
    anything is old.

    What a run was made with and this code builds in one way only is said in a line; weights of another shape are then
    refused where they are loaded. Raises ValueError, naming `source`, where the bottlenecks of its modalities differ
    and where a value is of another kind.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{source}: settings must be a mapping, not {values!r}")
    try:
        return _upgraded(values, source)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} holds what are no settings: {type(error).__name__} {error}") from error


def _upgraded(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    flat = dict(_flat(values))
    upgraded = _upgrade_bottleneck(flat)
    for old, new in MOVED_SETTINGS.items():
        if old in upgraded:
            value = upgraded.pop(old)
            if not new.startswith("encoder_weights.") or value is not None:
                upgraded[new] = value
    _upgrade_rates(upgraded)
    _upgrade_words(upgraded)
    for name, needed in FIXED_SETTINGS.items():
        value = upgraded.pop(name, needed)
        if needed is not None and value != needed:
            logger.warning("%s: %s=%s is no setting any more, it is %s for every run", source, name, value, needed)
    if upgraded.keys() != flat.keys():
        logger.info("%s: settings of an older version, read by their new names", source)
    return _nested(upgraded, source)


def upgrade_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, as any commit since a239565 wrote them -> as this code names and shapes them."""
    upgraded = {}
    for name, tensor in state.items():
        for pattern, new in MOVED_TENSORS:
            name = pattern.sub(new, name)
        if ONE_ELEMENT.match(name) and tensor.ndim == 0:
            tensor = tensor.view(1)
        upgraded[name] = tensor
    return upgraded


def upgrade_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a result.json, as any commit since a239565 wrote it -> as this code writes it; no number changes.

    A result of today is returned equal. Further figures, which stood under `protocols`, are evaluations beside the
    first. Of `config` the settings that were only renamed get their new names. Raises ValueError on what is no result.
    """
    if not isinstance(result, Mapping) or not result.get("protocol"):
        raise UserError("it has no protocol")
    found = {name: dict(value) if isinstance(value, Mapping) else value for name, value in result.items()}
    further = found.pop("protocols", {})
    if "judged" in found:
        found["evaluated"] = found.pop("judged")
    if "config" in found:
        found["config"] = _rename_settings(found["config"])
    protocols = found["protocol"]
    if "dataset" in protocols:
        name = next(iter(further), protocols.get("split", "val"))
        protocols = {name: protocols}
    found["protocol"] = {name: _upgrade_protocol(protocol) for name, protocol in protocols.items()}
    for name, figures in further.items():
        if name not in found["protocol"]:
            _add_figures(found, name, figures)
    for protocol in found["protocol"].values():
        if protocol["pretraining"] == NOT_STATED:
            protocol["pretraining"] = _pretraining(found.get("config", {}))
    return found


def _pretraining(config: Mapping[str, Any]) -> str:
    """What the trunks of a result's settings had seen; not stated where it has none."""
    modalities = config.get("model", {}).get("modalities", ())
    return pretraining({modality: config[modality]["trunk"] for modality in modalities})


def renamed_flag(flag: str) -> str | None:
    """What is said of an old option such as --loss.fine, None of one that never was."""
    name = flag.removeprefix("--")
    shared = re.sub(r"^(image|audio|text)\.bottleneck\.", "bottleneck.", name)
    shared = shared.replace("quantizer.codes", "quantizer.num_codes")
    new = MOVED_SETTINGS.get(name) or (shared if shared != name else None)
    if new is None and name.endswith(".learning_rate_factor") and not name.startswith("schedule."):
        modality = name.partition(".")[0]
        return f"{flag} is now --optim.rates '{{\"encoders.{modality}.trunk.*\": FACTOR}}'"
    if name in ("eval.rerank_global", "eval.rerank_late"):
        return f"{flag} is now one of the two --eval.rerank_weights"
    if new is not None and new not in FIXED_SETTINGS:
        return f"{flag} is now --{new}"
    if name in FIXED_SETTINGS or shared in FIXED_SETTINGS:
        return f"{flag} is no option any more: leave it out"
    return None


def _upgrade_bottleneck(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The three bottlenecks, which are one now. Raises ValueError where those of the model's modalities differ."""
    kept = {}
    blocks: dict[str, dict[str, Any]] = {modality: {} for modality in MODALITIES}
    for name, value in flat.items():
        modality, _, rest = name.partition(".")
        if modality in blocks and rest.startswith("bottleneck."):
            blocks[modality][rest.replace("quantizer.codes", "quantizer.num_codes")] = value
        else:
            kept[name.replace("quantizer.codes", "quantizer.num_codes")] = value
    own = [blocks[m] for m in kept.get("model.modalities", MODALITIES) if blocks[m]]
    for block in own[1:]:
        for name in block:
            if block[name] != own[0].get(name, block[name]):
                raise UserError(f"{name} differs between modalities, which share one bottleneck now")
    for block in own:
        kept.update(block)
    return kept


def _upgrade_rates(settings: dict[str, Any]) -> None:
    for modality in MODALITIES:
        factor = settings.pop(f"{modality}.learning_rate_factor", 1.0)
        if factor != 1.0:
            settings.setdefault("optim.rates", {})[f"encoders.{modality}.trunk.*"] = factor


def _upgrade_words(settings: dict[str, Any]) -> None:
    if settings.get("schedule.kind") == "global_only":
        settings["schedule.kind"] = "contrastive_only"
    weights = [settings.pop(name, 1.0) for name in ("eval.rerank_global", "eval.rerank_late")]
    if weights != [1.0, 1.0]:
        settings["eval.rerank_weights"] = weights
    rates = settings.get("optim.rates", {})
    if any("term_strength" in pattern for pattern in rates):
        settings["optim.rates"] = {name.replace("term_strength", "term_bias"): rate for name, rate in rates.items()}


def _rename_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {}
    for name, value in _flat(config):
        new = MOVED_SETTINGS.get(name, name)
        renamed[new.replace("quantizer.codes", "quantizer.num_codes")] = value
    if renamed.get("schedule.kind") == "global_only":
        renamed["schedule.kind"] = "contrastive_only"
    return _nested(renamed, "the settings in a result")


def _upgrade_protocol(old: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol in today's fields.

    Of old fields `zero_shot` said with `trained_on` what `trained_on` says alone today, `dataset` ended in the split,
    `captions_per_image` was a mean, and `skipped` a number without reasons.
    """
    found = dict(old)
    mean = found.get("captions_per_image", found["captions"] / found["images"])
    if isinstance(mean, int | float):
        found["captions_per_image"] = f"{mean:g}"
    words = "zero-shot, trained on" if found.pop("zero_shot", False) else "trained on"
    if "zero_shot" in old or "captions_per_image" not in old:
        found["trained_on"] = f"{words} {found['trained_on']}"
    skipped = found.get("skipped", 0)
    if isinstance(skipped, int):
        found["skipped"] = {"unreadable": skipped} if skipped else {}
    found["dataset"] = found["dataset"].removesuffix(f"/{found['split']}")
    for before, after in RENAMED_KINDS.items():
        if "task" in found:
            found["task"] = found["task"].replace(before, after)
    return asdict(Protocol(**found))


def _add_figures(result: dict[str, Any], name: str, figures: Mapping[str, Any]) -> None:
    """Into the three maps of a result, as `eval.figures.join_figures` writes them."""
    result["protocol"][name] = _upgrade_protocol(figures["protocol"])
    for part in ("metrics", "intervals"):
        for figure, value in figures[part].items():
            result[part][f"{name}/{figure}"] = value


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted names; a dict that is a value (rates, weights by modality) stays one."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in WHOLE:
            yield from _flat(value, f"{path}.")
        else:
            yield path, value


def _nested(flat: Mapping[str, Any], source: str) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        part = nested
        for parent in parents:
            part = part.setdefault(parent, {})
            if not isinstance(part, dict):
                raise UserError(f"{source}: {name} and {parent} are both given: one is a part of the other")
        part[last] = value
    return nested
