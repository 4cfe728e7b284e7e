"""Retrieval when only codes are kept of an image: bytes and recalls, beside float32 vectors and faiss's product
quantization of the same vectors.

    python scripts/eval_codes.py --runs '[runs/codes]'
    python scripts/eval_codes.py --runs '[runs/default, runs/codes]' --product '[16, 64]' --json stored_codes.json

Codes are stored of runs with bottleneck.mode=vq, whose vectors are made of codes alone; they are packed, unpacked,
and embedded again without the image. It needs faiss (pip install 'mm-align[bench]').
"""

from mm.cli import run_command
from mm.evaluation.stored_codes import EvalCodes, eval_codes

if __name__ == "__main__":
    run_command(EvalCodes, eval_codes, log=True)
