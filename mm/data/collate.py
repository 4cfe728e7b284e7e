"""The one rule by which rows become a padded batch: of the loader, the evaluation and the processor."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mm.batch import Batch
from mm.data.views import Example
from mm.readers import Reader

Tokenizer = Callable[[list[str]], tuple[Tensor, Tensor]]
"""B strings -> (ids (B, L) int64, mask (B, L) bool, True where real)."""


class Collate:
    """Examples -> Batch. Token rows are kept, since a caption recurs every epoch and tokenizing is the slowest part.

    Args:
        readers: by modality, of everything but text.
        tokenizer: of captions; without one the batch has no text.
    """

    def __init__(self, readers: Mapping[str, Reader], tokenizer: Tokenizer | None) -> None:
        self.readers = readers
        self.tokenizer = tokenizer
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Stack examples, all of the same modalities and the same number of captions.

        Args:
            examples: B of them, with K captions each.

        Returns:
            Batch of B rows of each modality, and K·B of text.
        """
        image_ids = [example.image_id for example in examples]
        batch = Batch(torch.tensor(image_ids))
        for modality in examples[0].rows:
            rows = [example.rows[modality] for example in examples]
            inputs, mask = self.readers[modality].stack(rows)
            batch.put(modality, inputs, mask)
            present = [row is not None for row in rows]
            batch.present[modality] = torch.tensor(present)
        if self.tokenizer is not None:
            captions: list[str] = []
            for example in examples:
                captions.extend(example.captions)
            self.put_text(batch, captions)
        return batch

    def text(self, captions: Sequence[str], image_ids: Tensor) -> Batch:
        """A batch of captions alone.

        Args:
            captions: B strings.
            image_ids: (B,) int64, the image of each.

        Returns:
            Batch with inputs["text"] (B, L) int64 and masks["text"] (B, L) bool.
        """
        batch = Batch(image_ids)
        self.put_text(batch, captions)
        return batch

    def put_text(self, batch: Batch, captions: Sequence[str]) -> None:
        """Add captions to a batch; an empty one counts as absent.

        Args:
            batch: of B samples.
            captions: K·B strings: the K of the first sample, those of the second, …: joined in rank order, the rows of
                several ranks are those of one process.
        """
        rows = self.token_rows(captions)
        ids = stack_rows([row for row, _ in rows])
        mask = stack_rows([real for _, real in rows])
        batch.put("text", ids, mask)
        present = [bool(caption) for caption in captions]
        batch.present["text"] = torch.tensor(present)
        batch.sample_index["text"] = torch.arange(len(captions)) // (len(captions) // len(batch))

    def token_rows(self, captions: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Tokenize captions, each once.

        Args:
            captions: N strings.

        Returns:
            ids (L_i,) int64 and mask (L_i,) bool of each caption, without trailing padding: the length of a batch
            depends on its own captions alone.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._rows]
        if new:
            assert self.tokenizer is not None
            tokens, mask = self.tokenizer(new)
            lengths = _lengths(mask)
            for caption, row, real, length in zip(new, tokens, mask, lengths, strict=True):
                self._rows[caption] = (row[:length], real[:length])
        return [self._rows[caption] for caption in captions]


def _lengths(mask: Tensor) -> list[int]:
    """mask (B, L) -> one past the last real position of each row."""
    positions = torch.arange(1, mask.shape[1] + 1)
    return (mask * positions).amax(1).tolist()


def stack_rows(rows: Sequence[Tensor]) -> Tensor:
    """Token rows (L_i,) -> (B, max L), padded with zeros (False in a mask)."""
    lengths = {len(row) for row in rows}
    if len(lengths) == 1:
        return torch.stack(list(rows))
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
