"""Evaluate a run, an open_clip model, or anybody's embeddings, under every COCO protocol they allow.

    python scripts/eval_coco.py --run runs/flickr8k --data.root DIR --data.split val
    python scripts/eval_coco.py --open_clip ViT-B-32:laion2b_s34b_b79k --data.root DIR --data.split val
    python scripts/eval_coco.py --embeddings clip.npz --data.ground_truth path/to/coco_benchmarks --trained_on zero-shot
    python scripts/eval_coco.py --run DIR --data.split test --data.validation val --data.retriever clip.npz   # matching
    python scripts/eval_coco.py --run DIR --sugar_crepe path/to/sugar_crepe --data.root COCO    # with its val2017
    python scripts/eval_coco.py --run DIR --classes FOLDER    # zero-shot: FOLDER/<class name>/<image or audio>

An .npz file holds image (N, D), text (M, D), image_ids (N,), caption_image_ids (M,), and may hold caption_ids (M,),
audio (A, D), audio_image_ids (A,). With --data.ground_truth (ECCV Caption's files) CxC and ECCV are evaluated too. With
--data.validation, which fixes its threshold, balanced matching is evaluated: accuracy, AUC, pairwise forced choice and
calibration error, with random negatives and, with --data.retriever, hard ones; a run by its cosine and by the logits of
its match head. A run's retrieval is evaluated with and without re-ranking through its cross-modal attention.
"""

import logging

from rich.console import Console

from mm.cli import run_command
from mm.evaluation.config import EvalCoco


def eval_coco(request: EvalCoco) -> None:
    """Print every figure with its interval, one table per protocol; a run's own table comes first."""
    from eval.figures import figures_table
    from mm.evaluation.request import answer, keep
    from mm.evaluation.result import show

    given = answer(request)
    if given.evaluated.described:
        show(given.evaluated.described)
    console = Console()
    for figures in given.shown().values():
        console.print(figures_table(figures))
    for place in keep(request, given):
        print(f"result: {place}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_command(EvalCoco, eval_coco)
