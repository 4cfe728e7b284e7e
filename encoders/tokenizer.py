"""Captions to token ids. The tokenizer is the trunk's own: open_clip's for its model, or transformers'."""

import importlib.util
import sys
from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.clip_towers import open_clip_tokenizer
from encoders.trunks import fetching, hugging_face_folder, require_transformers
from kernels.errors import UserError

PADDING = 0
"""What open_clip pads with, which is also a token."""
CAPTIONS_AT_ONCE = 1024
"""Captions that are tokenized at a time to find a vocabulary."""


@cache
def _scratch_bpe() -> Any:
    """open_clip's own tokenizer. Reading its merges takes as long as a small model's first batch."""
    return _tokenizer_module().SimpleTokenizer()


def _tokenizer_module() -> Any:
    """`open_clip.tokenizer`, without its package where nothing has imported that: the package imports timm, with all of
    its models, which takes two seconds of every command's start."""
    name = "open_clip.tokenizer"
    package = importlib.util.find_spec("open_clip")
    if "open_clip" in sys.modules or package is None or package.origin is None:
        return importlib.import_module(name)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(package.origin).with_name("tokenizer.py"))
        assert spec is not None and spec.loader is not None  # of a file that ends in .py
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module  # the package takes it from here if it is imported later, and so does pickle
    return sys.modules[name]


class Tokenizer:
    """B captions -> ids (B, L) int64, mask (B, L) bool; L is the longest of these captions, at most `max_tokens`.

    Args:
        trunk: as `TextConfig.trunk`, whose tokenizer it is.
        max_tokens: where captions are cut, start and end tokens included.

    Raises:
        ValueError: there is no such trunk, or its tokenizer cannot be fetched.
    """

    def __init__(self, trunk: str, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        library, _, name = trunk.partition("/")
        self.hugging_face: Any = None
        self.bpe: Any = None
        self.cleaned: Callable[[str], str] = str
        """What a caption goes through first."""
        self.strips_separator = False
        """Whether padding stands in the separator's place."""
        if library == "hf":
            with fetching(trunk):
                transformers = require_transformers(trunk)
                folder = hugging_face_folder(name)
                self.hugging_face = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        elif library == "open_clip":
            self._take_open_clip(open_clip_tokenizer(name))
        elif library == "scratch":
            self.bpe = _scratch_bpe()
        else:
            raise UserError(f"text.trunk={trunk!r}: use scratch, open_clip/<name> or hf/<name or folder>")
        if self.hugging_face is not None:
            if self.hugging_face.pad_token_id is None:
                raise UserError(f"the tokenizer of {trunk} has no padding token: it cannot read several captions")
            # Trunks read by length, so the real tokens come first; what pads on the left is a decoder's habit.
            self.hugging_face.padding_side = "right"

    def _take_open_clip(self, tokenizer: Any) -> None:
        """A model's own BPE, or the tokenizer of transformers that it trained with, and what it does around that."""
        if not hasattr(tokenizer, "tokenizer"):
            self.bpe = tokenizer
            return
        if tokenizer.tokenizer_mode:
            raise UserError(f"open_clip's tokenizer mode {tokenizer.tokenizer_mode!r} is not supported here")
        self.hugging_face = tokenizer.tokenizer
        self.cleaned = tokenizer.clean_fn
        self.strips_separator = tokenizer.strip_sep_token

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Tokenize captions.

        Args:
            captions: B strings.

        Returns:
            ids (B, L) int64 and mask (B, L) bool, True where a token is real.
        """
        if self.hugging_face is not None:
            return self._transformers_ids(captions)
        ids = self.bpe(captions, context_length=self.max_tokens)
        # open_clip pads with 0, which is also the token "!": the end token, the highest id, marks the end of a caption.
        end = ids.argmax(1)
        mask = torch.arange(ids.shape[1]) <= end[:, None]
        longest = int(end.max()) + 1
        return ids[:, :longest], mask[:, :longest]

    def _transformers_ids(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """ids (B, L) and mask (B, L) by a tokenizer of transformers."""
        cleaned = [self.cleaned(caption) for caption in captions]
        encoded = self.hugging_face(
            cleaned, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        ids = encoded["input_ids"]
        if self.strips_separator:
            ids = ids.where(ids != self.hugging_face.sep_token_id, 0)
        return ids, encoded["attention_mask"].bool()

    @property
    def ends(self) -> tuple[int, int]:
        """Ids of the token that every caption starts with, and of the one that it ends with.

        Raises:
            ValueError: captions of this tokenizer have no such tokens, so that nothing says where to begin or to stop.
        """
        ids, mask = self([""])
        around = ids[0][mask[0]].tolist()
        if len(around) != 2:
            raise UserError("the text trunk's tokenizer has no start and end token: text cannot be written with it")
        return around[0], around[1]

    def id_of(self, token: str) -> int:
        """The id of one token, special ones included.

        Raises:
            ValueError: the tokenizer has no such token.
        """
        known = self.bpe.encoder if self.hugging_face is None else self.hugging_face.get_vocab()
        if token not in known:
            raise UserError(f"the tokenizer has no token {token!r}")
        return known[token]

    def word_ids(self, text: str, after: str = "") -> list[int]:
        """Token ids of a text without start and end token.

        Args:
            text: a word or phrase.
            after: the beginning of `text` whose tokens are dropped.

        Raises:
            ValueError: the tokens of `text` do not begin with those of `after`.
        """
        ids = self._plain_ids(text)
        first = self._plain_ids(after)
        if ids[: len(first)] != first:
            raise UserError(f"the tokens of {text!r} do not begin with those of {after!r}")
        return ids[len(first) :]

    def _plain_ids(self, text: str) -> list[int]:
        """Token ids of a text without start and end token."""
        if self.hugging_face is None:
            return self.bpe.encode(text)
        encoded = self.hugging_face(self.cleaned(text), add_special_tokens=False)
        return encoded["input_ids"]

    @property
    def unknown(self) -> int | None:
        """The id of tokens that the tokenizer does not know, if it has one."""
        if self.hugging_face is None:
            return None
        return self.hugging_face.unk_token_id

    def decode(self, ids: list[int]) -> str:
        """Token ids of one caption -> text, special tokens skipped."""
        if self.hugging_face is not None:
            return self.hugging_face.decode(ids, skip_special_tokens=True)
        special = (self.bpe.sot_token_id, self.bpe.eot_token_id)
        plain = [token for token in ids if token not in special]
        return self.bpe.decode(plain).strip()


def observed_vocabulary(tokenizer: Tokenizer, captions: Iterable[str]) -> Tensor:
    """The token ids that occur in captions.

    A scratch embedding of these alone is a tenth of BPE's 49,408. BPE reads word by word: each word is tokenized once,
    not in every one of half a million captions.

    Args:
        tokenizer: of the text encoder.
        captions: of the training split.

    Returns:
        (V,) int64, sorted; with the padding's id where captions that are read at a time differ in length.
    """
    seen: set[int] = set()
    words: dict[str, list[int]] = {}
    remaining = iter(captions)
    while chunk := list(islice(remaining, CAPTIONS_AT_ONCE)):
        lengths: set[int] = set()
        others = []
        for caption in chunk:
            ids = _ids_by_word(tokenizer, caption, words)
            if ids is None:
                others.append(caption)
            else:
                seen.update(ids)
                lengths.add(len(ids))
        if others:
            rows, mask = tokenizer(others)
            seen.update(rows[mask].tolist())
            lengths.update(mask.sum(1).tolist())
        if len(lengths) > 1:
            seen.add(PADDING)
    return torch.tensor(sorted(seen))


def _ids_by_word(tokenizer: Tokenizer, caption: str, known: dict[str, list[int]]) -> list[int] | None:
    """The ids of a caption by those of its words, which are noted in `known`.

    None where the tokenizer may read it otherwise: it is no BPE, the caption is cut, or holds what is mended first.
    """
    bpe = tokenizer.bpe
    if bpe is None or "&" in caption or not (caption.isascii() and caption.isprintable()):
        return None
    ids = [bpe.sot_token_id]
    for word in caption.split():
        if word not in known:
            known[word] = bpe.encode(word)
        ids += known[word]
    return [*ids, bpe.eot_token_id] if len(ids) < tokenizer.max_tokens else None
