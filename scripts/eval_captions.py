"""Captions that a run writes: BLEU-4, METEOR, ROUGE-L, CIDEr against people's, beside the nearest training captions.

    python scripts/eval_captions.py --run runs/writes
    python scripts/eval_captions.py --run runs/writes --root DIR --split val --decoding.beams 3 --json captions.json
    python scripts/eval_captions.py --run runs/writes --beside audio --nearest false

It needs pycocoevalcap (pip install 'mm-align[captions]') and Java. The baseline answers each image with the training
caption that the same run finds nearest to it. A report (.html) is written beside the result, with the best and the
worst captions and where their words looked, and the captions as COCO's server takes them.
"""

from mm.cli import run_command
from mm.evaluation.captions import EvalCaptions, eval_captions

if __name__ == "__main__":
    run_command(EvalCaptions, eval_captions, log=True)
