"""The card of a repository: front matter that the hub reads, and what a reader needs, written from result.json."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from encoders.trunks import original
from eval.figures import Figures, first_protocol, split_figures
from mm.compress.ledger import LedgerRow
from mm.config import AlignConfig, trunks_of
from mm.hub.reference import SCHEME, Reference

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

RECALLS = ("R@1", "R@5", "R@10")
TASK = "image-text-retrieval"
CLASSIFIES = "zero-shot-image-classification"
"""The hub's word for a model that compares images and texts."""
EMBEDS = "feature-extraction"


@dataclass(frozen=True)
class Described:
    """What a card is written from.

    Args:
        reference: where it is pushed to.
        result: the content of result.json.
        config: of the run, or of the run with the adapter.
        sizes: the size ledger.
        license: of the weights, by its name on the hub.
        base: what it was adapted from.
        adapter: whether it holds an adapter alone.
    """

    reference: Reference
    result: Mapping[str, Any]
    config: AlignConfig
    sizes: list[LedgerRow]
    license: str
    base: Reference | None = None
    adapter: bool = False


def card(described: Described) -> str:
    """README.md of a repository."""
    return f"---\n{front_matter(described)}\n---\n\n{body(described)}"


def front_matter(described: Described) -> str:
    """YAML of license, tags, task, base, sets and figures, by the names that the hub knows."""
    from huggingface_hub import ModelCardData

    modalities = described.config.model.modalities
    protocol = first_protocol(described.result)
    more: dict[str, Any] = {}
    bases = base_models(described)
    if bases:
        more["base_model"] = bases
    if described.base is not None:
        more["base_model_relation"] = "adapter" if described.adapter else "finetune"
    return ModelCardData(
        license=described.license,
        library_name="mm-align",
        pipeline_tag=CLASSIFIES if {"image", "text"} <= set(modalities) else EMBEDS,
        tags=["mm-align", "multimodal", "retrieval", "mixture-of-experts", *modalities],
        datasets=sets_of(protocol.dataset, described),
        model_name=described.reference.name,
        eval_results=list(eval_results(described.result)),
        **more,
    ).to_yaml()


def base_models(described: Described) -> list[str]:
    """Repositories of what a model starts from: the run that was adapted, or else its trunks, where they have one."""
    if described.base is not None:
        return [described.base.repository]
    found = []
    for trunk in trunks_of(described.config).values():
        for part in original(trunk).split("+"):
            found += _repository(part.strip().partition("@")[0])
    return list(dict.fromkeys(found))


def _repository(trunk: str) -> list[str]:
    library, _, name = trunk.partition("/")
    if library == "timm":
        import timm

        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        return [known.hf_hub_id] if known is not None and known.hf_hub_id else []
    plain = library == "hf" and name.count("/") == 1 and not name.startswith((".", "/", "~", "package:"))
    return [name] if plain else []


def sets_of(evaluated: str, described: Described) -> list[str]:
    """Names of the set that it was trained on and of the one that it was evaluated on, without their splits."""
    data = described.config.data
    trained = data.root.rstrip("/").rpartition("/")[2] if data.root else "scenes"
    return list(dict.fromkeys((trained, evaluated.partition("/")[0])))


def eval_results(result: Mapping[str, Any]) -> Iterator["EvalResult"]:
    """The recalls of every evaluation, for the model index."""
    from huggingface_hub import EvalResult

    for name, figures in split_figures(result).items():
        protocol = figures.protocol
        for direction in directions(figures):
            for recall in RECALLS:
                measured = f"{direction}/{recall}"
                if measured in figures.metrics:
                    yield EvalResult(
                        task_type=TASK,
                        dataset_type=protocol.dataset.partition("/")[0],
                        dataset_name=str(protocol),
                        dataset_split=protocol.split,
                        metric_type=f"{name}/{measured}".lower().replace("@", "_at_"),
                        metric_name=f"{recall} {direction.replace('_to_', ' to ')}, %",
                        metric_value=figures.metrics[measured],
                    )


def directions(figures: Figures) -> list[str]:
    """Those of retrieval that were evaluated, such as `image_to_text`."""
    ends = f"/{RECALLS[0]}"
    names = [name.removesuffix(ends) for name in figures.metrics if name.endswith(ends)]
    return [name for name in names if "_to_" in name and "/" not in name]


def body(described: Described) -> str:
    """The text below the front matter."""
    result = described.result
    kind = "An adapter" if described.adapter else "A run"
    modalities = ", ".join(described.config.model.modalities)
    paragraphs = [
        f"# {described.reference.repository}",
        f"{kind} of mm-align: {modalities} to unit vectors of one space, through VQ-VAEs and a sparse mixture of"
        " experts.",
        usage(described.reference),
    ]
    if described.base is not None:
        paragraphs.append(f"Adapted from `{described.base}`, which is loaded along with an adapter.")
    for figures in split_figures(result).values():
        paragraphs.append(f"{figures.protocol}\n\n{figures_table(figures)}")
    protocol = first_protocol(result)
    paragraphs += [
        f"- trained on: {protocol.trained_on}\n- the trunks have seen: {protocol.pretraining}\n"
        f"- commit: `{result['commit']}`, seed {result['seed']}, {result['seconds']:,.0f} s on {result['hardware']}\n"
        f"- license of the weights: {described.license}; data and pretrained trunks keep their own",
        sizes_table(described.sizes),
        "Weights are safetensors. Loading checks their sha256 and what they make of a fixed probe batch, and executes"
        " nothing of this repository.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def usage(reference: Reference) -> str:
    """Three lines that load the model and use it."""
    return (
        "```python\nimport mm\n"
        f'model = mm.load("{SCHEME}{reference}")\n'
        'print(model.similarity(model.encode_image("photo.jpg"), model.encode_text("a red circle")))\n```'
    )


def figures_table(figures: Figures) -> str:
    """Recalls in percent with their 95 % intervals, a row for each direction."""
    lines = [f"| any of them found, % | {' | '.join(RECALLS)} |", "|---|---|---|---|"]
    for direction in directions(figures):
        cells = []
        for recall in RECALLS:
            name = f"{direction}/{recall}"
            low, high = figures.intervals.get(name, (float("nan"), float("nan")))
            cells.append(f"{figures.metrics.get(name, float('nan')):.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"| {direction.replace('_to_', ' → ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sizes_table(sizes: list[LedgerRow]) -> str:
    """The size ledger by role."""
    lines = ["| part | weights | MB | bits per weight |", "|---|---|---|---|"]
    lines += [f"| {row.group} | {row.weights:,} | {row.stored / 1e6:.2f} | {row.bits:.1f} |" for row in sizes]
    return "\n".join(lines)
