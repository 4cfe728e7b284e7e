"""Text: words survive the tokenizer, unknown ones are one row, and padding changes nothing."""

import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from encoders import TextConfig, TextEncoder
from encoders.quantizer import QuantizerConfig
from encoders.text import ScratchTextTrunk
from encoders.tokenizer import Tokenizer, _scratch_bpe, observed_vocabulary
from encoders.vqvae import BottleneckConfig

SMALL = TextConfig(
    width=16,
    depth=1,
    heads=2,
    max_tokens=12,
)
BOTTLENECK = BottleneckConfig(quantizer=QuantizerConfig(num_codes=16, width=8), reconstruct=1)
CAPTIONS = ["a red circle", "two blue squares and a star", "stripes!"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer("scratch", SMALL.max_tokens)


@pytest.fixture
def encoder(tokenizer: Tokenizer) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(SMALL, BOTTLENECK, 32, observed_vocabulary(tokenizer, CAPTIONS))


def test_captions_survive_the_round_trip(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(CAPTIONS)
    for caption, row, real in zip(CAPTIONS, ids, mask, strict=True):
        assert tokenizer.decode(row[real].tolist()).replace(" !", "!") == caption


def test_the_tokenizer_is_open_clip_s_without_the_rest_of_it(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a process that has imported nothing of open_clip, and then does."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
        monkeypatch.delitem(sys.modules, name)
    _scratch_bpe.cache_clear()
    alone = Tokenizer("scratch", SMALL.max_tokens)
    assert "open_clip" not in sys.modules
    torch.testing.assert_close(alone(CAPTIONS), tokenizer(CAPTIONS))
    import open_clip

    assert type(alone.bpe) is open_clip.SimpleTokenizer
    assert pickle.loads(pickle.dumps(alone)).id_of("circle</w>") == tokenizer.id_of("circle</w>")
    _scratch_bpe.cache_clear()


def test_a_batch_is_as_long_as_its_longest_caption(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(CAPTIONS)
    assert ids.shape == mask.shape == (3, int(mask.sum(1).max()))
    assert mask.sum(1).tolist() == [3 + 2, 6 + 2, 2 + 2]  # words, start and end


def test_an_exclamation_mark_is_not_padding(tokenizer: Tokenizer) -> None:
    """open_clip pads with 0, which is also the token of "!"."""
    assert tokenizer(["!"])[1].sum() == 3
    assert tokenizer(["wow !", "wow"])[1].sum(1).tolist() == [4, 3]


def test_a_long_caption_is_cut(tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(["word " * 50])
    assert ids.shape == (1, SMALL.max_tokens) and mask.all()


def test_the_vocabulary_is_what_occurs(tokenizer: Tokenizer) -> None:
    def captions() -> Iterator[str]:
        yield from CAPTIONS * 500  # more than one chunk

    found = observed_vocabulary(tokenizer, captions())
    ids, mask = tokenizer(CAPTIONS)
    assert torch.equal(found, observed_vocabulary(tokenizer, CAPTIONS))
    assert set(ids[mask].tolist()) <= set(found.tolist()) and len(found) < 25


def test_unknown_tokens_are_row_zero(encoder: TextEncoder, tokenizer: Tokenizer) -> None:
    trunk = encoder.trunk
    assert isinstance(trunk, ScratchTextTrunk)
    ids, mask = tokenizer(["a red zebra", "a red yacht", "zebra"])
    rows = trunk.compact(ids)
    known = torch.isin(ids, trunk.vocabulary)
    assert torch.equal(rows > 0, known) and (~known[mask]).any() and rows.max() < trunk.vocabulary_size
    assert torch.equal(trunk.vocabulary[rows[known] - 1], ids[known])
    tokens = trunk(ids, mask).tokens
    torch.testing.assert_close(tokens[0], tokens[1])  # zebra and yacht are the same stranger
    assert torch.equal(trunk.compact(torch.tensor([[10**6, -1]])), torch.zeros(1, 2, dtype=torch.int64))


def test_padding_changes_nothing(encoder: TextEncoder, tokenizer: Tokenizer) -> None:
    encoder.eval()
    ids, mask = tokenizer(CAPTIONS)
    alone_ids, alone_mask = tokenizer(CAPTIONS[:1])
    both = encoder(ids, mask, reconstruct=False)
    alone = encoder(alone_ids, alone_mask, reconstruct=False)
    torch.testing.assert_close(both.tokens[:1, : alone_ids.shape[1]], alone.tokens)
    assert torch.equal(both.codes[:1, : alone_ids.shape[1]], alone.codes) and (both.codes[~mask] == -1).all()


def test_logits_lead_back_to_the_tokenizers_ids(encoder: TextEncoder, tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(CAPTIONS[:2])
    rows = encoder.rows(ids)
    perfect = torch.nn.functional.one_hot(rows, encoder.trunk.vocabulary_size).float()
    assert torch.equal(encoder.token_ids(perfect)[mask], ids[mask])
    out = encoder(ids, mask, reconstruct=False)
    assert encoder.reconstruct(out.codes).shape == (*ids.shape, encoder.trunk.vocabulary_size)


def test_training_decodes_a_sample_of_positions_and_evaluation_all(encoder: TextEncoder, tokenizer: Tokenizer) -> None:
    ids, mask = tokenizer(CAPTIONS)
    encoder(ids, mask)
    seen: list[int] = []
    encoder.decoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))  # type: ignore[union-attr]
    for training in (True, False):
        encoder.train(training)(ids, mask)
    assert seen == [8, int(mask.sum())]


def test_a_scratch_trunk_needs_a_vocabulary_and_a_trunk_a_known_name() -> None:
    with pytest.raises(ValueError, match="needs the vocabulary"):
        TextEncoder(SMALL, BOTTLENECK, 32)
    for build in (lambda c: TextEncoder(c, BOTTLENECK, 32), lambda c: Tokenizer(c.trunk, 12)):
        with pytest.raises(ValueError, match="use scratch, open_clip/<name> or hf/<name or folder>"):
            build(replace(SMALL, trunk="word2vec"))


@pytest.mark.parametrize("length", [5, 12, 40])
def test_the_vocabulary_by_words_is_that_of_whole_captions(length: int) -> None:
    """Whatever a caption holds: what is cut, mended, upper case, joined by punctuation, or not ASCII."""
    tokenizer = Tokenizer("scratch", length)
    said = ["A dog's ball, 3rd of 12!", "caf\u00e9 &amp; bar", "two\u2019s", "a  b\tc\n", "x-y_z#1", "many " * 30, "!"]
    for captions in (said, *([caption] for caption in said), said[:2], ["a", "b"]):
        ids, _ = tokenizer(captions)
        assert torch.equal(observed_vocabulary(tokenizer, captions), ids.unique())
