"""Options that would do nothing in the combination they are given in: refused in a line, never ignored in silence."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from typing import Any

from alignment import DETAILED, MATCHED, SUMMARIES_FIRST, has_stage, moment
from kernels.errors import UserError


@dataclass(frozen=True)
class Needs:
    """Options that have an effect only where something else holds.

    Args:
        options: names or patterns of names, joined by spaces.
        met: whether it holds, of the settings.
        words: what it is, in a message.
        switches: names, joined by spaces, of what decides it. A switch on the command line overrides a file of
            settings: what the file says beside it is no mistake then.
        of_files: whether a file must not have them either; a benchmark reads a part of a run's.
    """

    options: str
    met: Callable[[Any], bool]
    words: str
    switches: str = ""
    of_files: bool = True


def require_effects(settings: Any, typed: Sequence[str], needs: Sequence[Needs]) -> None:
    """Check that every option that is given does something.

    Args:
        settings: the dataclass that was built.
        typed: names of the options on the command line; others that differ from their default come from a file.
        needs: what options need.

    Raises:
        UserError: an option has no effect; the message names it and what it needs.
    """
    values = dict(nested_leaves(settings))
    changed = dict(_changed(settings))
    for need in needs:
        if need.met(settings):
            continue
        overridden = any(_fits(name, need.switches) for name in typed)
        for name, value in values.items():
            on_line = value is not None and any(name == word or word.startswith(f"{name}.") for word in typed)
            in_file = name in changed and need.of_files and not overridden
            if _fits(name, need.options) and (on_line or in_file):
                raise UserError(f"{name}={value} has no effect: it needs {need.words}")


def _fits(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def nested_leaves(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a dataclass of settings by their dotted names."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(value) and each.name != "augment":
            yield from nested_leaves(value, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", value


def _changed(settings: Any) -> Iterator[tuple[str, Any]]:
    """The leaves that differ from their defaults, of what has some."""
    defaults: dict[str, Any] = {}
    for each in fields(settings):
        default = each.default
        if each.default_factory is not MISSING:
            default = each.default_factory()
        if is_dataclass(default) and not isinstance(default, type):
            inner = {f"{each.name}.{name}": value for name, value in nested_leaves(default)}
            defaults.update(inner)
        else:
            defaults[each.name] = default
    for name, value in nested_leaves(settings):
        if name in defaults and defaults[name] != value:
            yield name, value


def _never(settings: Any) -> bool:
    return False


def _modalities(settings: Any) -> Sequence[str]:
    """Those whose encoders are built."""
    if hasattr(settings, "modality"):
        return (settings.modality,)
    return settings.model.modalities


def _library(settings: Any, modality: str) -> str:
    return getattr(settings, modality).trunk.partition("/")[0]


def _starts_from_weights(settings: Any, modality: str) -> bool:
    """Whether an encoder's trunk is anything but random."""
    own = getattr(settings, modality)
    given: str | Mapping[str, str] | None = settings.encoder_weights
    if given and (isinstance(given, str) or modality in given):
        return True
    if own.trunk.startswith("open_clip/"):
        return ":" in own.trunk or own.weights is not None
    return own.trunk != "scratch"


def _encoder_needs(modality: str, sizes: str) -> list[Needs]:
    """What the options of one modality's encoder need."""
    switch = f"{modality}.trunk {modality}.weights"

    def built(settings: Any) -> bool:
        return modality in _modalities(settings)

    def scratch(settings: Any) -> bool:
        return getattr(settings, modality).trunk == "scratch"

    def takes_file(settings: Any) -> bool:
        return _library(settings, modality) not in ("scratch", "hf")

    def tag_counts(settings: Any) -> bool:
        own = getattr(settings, modality)
        return not (own.trunk.startswith("open_clip/") and ":" in own.trunk and own.weights)

    def loaded(settings: Any) -> bool:
        own = getattr(settings, modality)
        return not own.frozen or _starts_from_weights(settings, modality)

    return [
        Needs(f"{modality}.*", built, f"{modality} among the modalities", "model.modalities modality"),
        Needs(" ".join(f"{modality}.{size}" for size in sizes.split()), scratch, f"{modality}.trunk=scratch", switch),
        Needs(f"{modality}.weights", takes_file, "a trunk that reads a file: timm/… or open_clip/…", switch),
        Needs(f"{modality}.weights", tag_counts, "an open_clip trunk without a tag: give one of them"),
        Needs(f"{modality}.frozen", loaded, "weights: a random trunk that is frozen learns nothing"),
    ]


def _frozen_image(settings: Any) -> bool:
    return "image" in _modalities(settings) and settings.image.frozen


def _augmented(settings: Any) -> bool:
    return "image" in _modalities(settings) and (not settings.image.frozen or settings.data.views > 1)


def _has_root(settings: Any) -> bool:
    return settings.data.root is not None


def _reads_audio(settings: Any) -> bool:
    return "audio" in _modalities(settings)


def _reads_text(settings: Any) -> bool:
    return "text" in _modalities(settings)


def _pools(settings: Any) -> bool:
    return _library(settings, "image") == "timm"


def _discrete(settings: Any) -> bool:
    return settings.bottleneck.mode != "continuous"


def _quantizer(*kinds: str) -> Callable[[Any], bool]:
    return lambda settings: settings.bottleneck.quantizer.kind in kinds


def _progressive(settings: Any) -> bool:
    return settings.schedule.kind == "progressive"


def _has_stage(number: int) -> Callable[[Any], bool]:
    return lambda settings: has_stage(settings.schedule, number)


def _fine(settings: Any) -> bool:
    return settings.schedule.kind in DETAILED


def _matched(settings: Any) -> bool:
    return settings.schedule.kind in MATCHED


def _fine_and_joined(settings: Any) -> bool:
    return _fine(settings) and moment(settings.schedule, 0.0).merge == "sum"


def _coded_beside_bypass(settings: Any) -> bool:
    return settings.schedule.kind != "codes_later" or settings.bottleneck.mode == "both"


def _projections_alone(settings: Any) -> bool:
    if settings.schedule.kind not in SUMMARIES_FIRST:
        return True
    return settings.model.direct and not settings.model.generate and settings.bottleneck.mode != "vq"


def _tokens_alone(settings: Any) -> bool:
    return settings.schedule.kind != "detail_on_top" or settings.model.token_head > 0


def _audio_after_anchors(settings: Any) -> bool:
    return settings.schedule.kind != "anchor_first" or {"image", "text", "audio"} <= set(_modalities(settings))


READ = [
    Needs("data.karpathy data.audio_root", _has_root, "data.root: the embedded scenes have neither", "data.root"),
    Needs("data.audio_root", _reads_audio, "audio among the modalities", "model.modalities modality"),
    Needs("data.views", _frozen_image, "image.frozen=true: only cached features have views", "image.frozen"),
    Needs(
        "data.augment",
        _augmented,
        "images that are read anew: data.views > 1, or a trunk that is not frozen",
        "data.views image.frozen model.modalities modality",
    ),
    Needs("data.captions data.limit_captions", _reads_text, "text among the modalities", "model.modalities modality"),
]
ENCODERS = [
    *_encoder_needs("image", "width stride depth"),
    *_encoder_needs("audio", "width depth"),
    *_encoder_needs("text", "width depth heads"),
    Needs("image.pool", _pools, "image.trunk=timm/…", "image.trunk"),
    Needs(
        "bottleneck.quantizer.* bottleneck.reconstruct loss.vq",
        _discrete,
        "codes: bottleneck.mode=both or vq",
        "bottleneck.mode",
    ),
    Needs(
        "bottleneck.quantizer.levels",
        _quantizer("fsq"),
        "bottleneck.quantizer.kind=fsq",
        "bottleneck.quantizer.kind",
    ),
    Needs(
        "bottleneck.quantizer.num_codes",
        _quantizer("ema", "cosine", "residual", "simvq"),
        "another bottleneck.quantizer.kind: fsq has the product of its levels",
        "bottleneck.quantizer.kind",
    ),
    Needs(
        "bottleneck.quantizer.decay",
        _quantizer("ema", "cosine", "residual"),
        "moving averages: bottleneck.quantizer.kind=ema, cosine or residual",
        "bottleneck.quantizer.kind",
    ),
]
STAGES = [
    Needs(
        "schedule.stage2", _has_stage(2), "a schedule.kind with a second stage, such as progressive", "schedule.kind"
    ),
    Needs("schedule.stage3", _has_stage(3), "a schedule.kind with a third stage, such as progressive", "schedule.kind"),
    Needs("schedule.learning_rate_factor", _progressive, "schedule.kind=progressive", "schedule.kind"),
]
ALIGN = [
    *READ,
    *ENCODERS,
    *STAGES,
    Needs(
        "model.head_dropout",
        lambda c: c.model.head > 0 or c.model.token_head > 0,
        "model.head or model.token_head > 0",
        "model.head model.token_head",
    ),
    Needs(
        "model.token_head",
        _fine_and_joined,
        "a schedule with fine-grained terms whose gradients are added, such as detail_on_top",
        "schedule.kind",
    ),
    Needs(
        "model.backbone.moe.bias_rate model.backbone.moe.balance",
        lambda c: c.model.backbone.moe.top_k < c.model.backbone.moe.num_experts,
        "experts to choose from: model.backbone.moe.top_k below num_experts",
        "model.backbone.moe.num_experts model.backbone.moe.top_k",
    ),
    Needs(
        "loss.filip loss.code_match",
        _fine,
        "a schedule with more than contrastive terms",
        "schedule.kind",
    ),
    Needs("loss.itm", _matched, "a schedule with matching terms, such as progressive", "schedule.kind"),
    Needs("schedule.kind", _coded_beside_bypass, "codes beside a bypass: bottleneck.mode=both", "bottleneck.mode"),
    Needs(
        "schedule.kind",
        _projections_alone,
        "model.direct=true, model.generate=false and bottleneck.mode=both or continuous: projections that learn alone",
        "model.direct model.generate bottleneck.mode",
    ),
    Needs("schedule.kind", _tokens_alone, "model.token_head > 0: the tokens that stand alone", "model.token_head"),
    Needs("schedule.kind", _audio_after_anchors, "image, text and audio: what is anchored?", "model.modalities"),
    Needs("loss.filip_rows", lambda c: _fine(c) and c.loss.filip > 0, "the term filip", "schedule.kind loss.filip"),
    Needs("loss.itm_rows", lambda c: _matched(c) and c.loss.itm > 0, "the term itm", "schedule.kind loss.itm"),
    Needs(
        "model.backbone.heads model.backbone.dropout model.backbone.checkpoint model.backbone.moe.*",
        lambda c: c.model.backbone.layers > 0,
        "model.backbone.layers > 0",
        "model.backbone.layers",
    ),
    Needs("loss.caption", lambda c: c.model.generate, "model.generate=true", "model.generate"),
    Needs("loss.continuation", lambda c: c.model.generate, "model.generate=true", "model.generate"),
    Needs(
        "eval.rerank",
        lambda c: c.eval.rerank == 0 or (_matched(c) and c.loss.itm > 0) or (_fine(c) and c.loss.filip > 0),
        "a schedule with terms that tell pairs apart one by one: matching, or late interaction",
        "schedule.kind loss.itm loss.filip",
    ),
    Needs("eval.rerank_weights", lambda c: c.eval.rerank > 0, "eval.rerank > 0", "eval.rerank"),
    Needs(
        "train.evaluate_every",
        lambda c: c.train.evaluation_steps <= c.train.steps,
        "as many train.steps; 0 evaluates at the end",
        "train.steps",
    ),
]
VQVAE = [
    *READ,
    *ENCODERS,
    Needs("train.ema train.evaluate_every train.freeze", _never, "a run of train_align.py"),
]
ADAPTED = [
    *STAGES,
    Needs(
        "train.devices train.strategy",
        lambda c: c.train.devices in ("auto", 1) and c.train.strategy == "auto",
        "more than one device: a run is adapted on one",
    ),
    Needs("patience", lambda c: c.train.evaluation_steps > 0, "train.evaluate_every > 0"),
]
FINETUNE = [
    *ADAPTED,
    Needs("lora.*", lambda c: c.strategy != "full", "strategy=lora or qlora", "strategy"),
]
CONTINUE = [
    *ADAPTED,
    Needs(
        "optim.warmup optim.final schedule.learning_rate_factor",
        _never,
        "another schedule than the stages of mix, which stand in its place",
    ),
]
COMPRESS = [Needs("learning_rate seed", lambda c: c.qat, "qat, the steps that it is of")]
FEATURES = [
    *ENCODERS,
    Needs(
        "name runs resume encoder_weights data.* train.* optim.* loss.* schedule.* eval.* text.* audio.*",
        _never,
        "a run: only the image encoder is timed",
        of_files=False,
    ),
]
STEP = [
    *ALIGN,
    Needs(
        "runs resume encoder_weights eval.* train.logger",
        _never,
        "a run: one step of a new one is timed",
        of_files=False,
    ),
]
FEEDING = [
    *READ,
    *ENCODERS,
    Needs(
        "name runs resume encoder_weights optim.* loss.* schedule.* eval.* train.logger",
        _never,
        "a run: only its batches are made",
        of_files=False,
    ),
]
