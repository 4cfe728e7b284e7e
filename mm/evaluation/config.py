"""Settings of evaluations: whose embeddings, of which data, measured how. Imports nothing that a model needs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from kernels.ranges import check_ranges


@dataclass(frozen=True)
class EvaluationData:
    """What is evaluated."""

    root: str | None = None
    """Folder in COCO caption layout or of shards, for a run or an open_clip model; without it, the run's own data.
    With sugar_crepe, the folder of COCO val2017's images or of its val2017/."""
    karpathy: str | None = None
    """The official dataset_coco.json; `split` is then one of its splits."""
    audio_root: str | None = None
    """Where `audio/` lies, if not in `root`."""
    dataset: str | None = None
    """Name of the dataset of an .npz file, for the protocol; without it, unstated."""
    split: str | None = None
    """Split to evaluate, val by default; of an .npz file its name for the protocol, without it unstated."""
    ground_truth: Path | None = None
    """Folder of ECCV Caption's data files (or one that holds them in eccv_caption/): evaluates CxC and ECCV, and skips
    their matches among the negatives. It fits the 5,000 images of the Karpathy test split, by COCO's ids."""
    validation: str | None = None
    """Fixes the threshold and the calibration of balanced matching, evaluated if this is given: another split of the
    same data, or, with embeddings, another .npz file or run folder."""
    retriever: Path | None = None
    """.npz file or run folder with a frozen retriever's embeddings of the items, by their ids: the top 20 images of
    each caption give the hard negatives. Where it has those of `validation` too, they fix a threshold as well."""
    retriever_name: str = ""
    """Its name for the protocol; by default the file's or the run's."""


@dataclass(frozen=True)
class EvalCoco:
    """Evaluate a run, an open_clip model or embeddings: by retrieval and matching, or sugar_crepe, or classes."""

    run: str | None = None
    """Folder of a finished run, or hf://org/name[@revision], which is pulled into runs/; what it scores is also written
    to <run>/eval-<dataset>.json."""
    open_clip: str | None = None
    """`<model>[:<tag or file>]`."""
    embeddings: Path | None = None
    """An .npz file, or the folder of a run that holds embeddings.npz, whose result.json says what they are of."""
    sugar_crepe: Path | None = None
    """Folder of SugarCrepe's seven files; the images are looked for in data.root."""
    classes: Path | None = None
    """Folder with one folder of images, or of audio clips, for each class: zero-shot classification."""
    templates: list[str] | None = None
    """Prompts of the classes, such as '["a photo of a {}."]'; by default three for images and three for audio clips."""
    data: EvaluationData = field(default_factory=EvaluationData)
    rerank: Annotated[int | None, "[0, inf)"] = None
    """Candidates of each query that a run scores again jointly; without it, as many as the run says."""
    precision: Literal["auto", "fp32", "bf16"] | None = None
    """In which a run computes; without it, as it says itself. Its name is then in that of the result."""
    trained_on: str | None = None
    """`zero-shot` or `trained on <dataset>`, for the protocol; a run says it itself, as do random weights."""
    samples: Annotated[int, "[1, inf)"] = 1000
    """Bootstrap samples of the intervals."""
    seed: Annotated[int, "[0, inf)"] = 0
    """Seed of the bootstrap and of the negatives."""
    json: Path | None = None
    """Where to write the result."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class RerankDepths:
    """Which run is evaluated on what, at which depths."""

    run: str
    """Folder of a finished run, or hf://org/name[@revision], which is pulled into runs/."""
    root: str | None = None
    """Folder in COCO caption layout or of shards; without it, the run's own data."""
    split: str = "val"
    """Split to evaluate."""
    depths: Annotated[tuple[int, ...], "[0, inf)"] = (0, 2, 5, 10, 20)
    """Candidates of each query that are scored again."""
    table: Path | None = None
    """CSV file; by default <run>/rerank.csv."""

    def __post_init__(self) -> None:
        check_ranges(self)
