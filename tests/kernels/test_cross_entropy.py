"""The cross-entropy of the tokens that count."""

import torch

from kernels.cross_entropy import joint_cross_entropy


def test_it_is_the_mean_over_the_tokens_that_count() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    real = torch.tensor([True, False, True, True, False, True])
    loss = joint_cross_entropy(logits, labels, real)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[real], labels[real]))
    loss.backward()
    assert logits.grad is not None and not logits.grad[~real].any() and logits.grad[real].any()
    assert joint_cross_entropy(logits, labels, real & False) == 0
