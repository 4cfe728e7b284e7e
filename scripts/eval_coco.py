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
its match head or late interaction. A run's retrieval is evaluated with and without re-ranking by these.
A report (.html) is written beside each result: that of --json, and a run's own.
"""

from mm.cli import run_command
from mm.evaluation.config import EvalCoco


def main(request: EvalCoco) -> None:
    from mm.evaluation.request import eval_coco

    eval_coco(request)


if __name__ == "__main__":
    run_command(EvalCoco, main, log=True)
