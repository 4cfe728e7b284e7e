"""A peer computes what we compute, on our tensors; one that is not installed is named and has no part."""

import importlib.util
import logging

import pytest
import torch

from kernels import peers
from kernels.grouped_mlp import grouped_mlp
from kernels.info_nce import info_nce, sigmoid_loss
from kernels.testing import ContrastiveCase, GroupedMLPCase, NearestCodeCase


def test_transformers_experts_are_ours() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    x, w_in, w_out, indices, weights = GroupedMLPCase(6, 3, 2, 16, 16).inputs(torch.float32)
    runs = peers.qwen3_experts(w_in, w_out, x, weights)
    assert list(runs) == ["transformers_eager", "transformers_grouped_mm"]
    for run in runs.values():
        torch.testing.assert_close(run(indices), grouped_mlp(x, w_in, w_out, indices, weights))


def test_experts_in_a_dozen_lines_of_torch_are_ours() -> None:
    x, w_in, w_out, indices, weights = GroupedMLPCase(6, 3, 2, 16, 16).inputs(torch.float32)
    runs = peers.torch_experts(w_in, w_out, x, weights)
    assert list(runs) == ["torch_grouped_mm", "torch_compiled"]
    torch.testing.assert_close(runs["torch_grouped_mm"](indices), grouped_mlp(x, w_in, w_out, indices, weights))


def test_open_clips_losses_are_ours() -> None:
    a, b, scale, bias = ContrastiveCase(6, 8).inputs(torch.float32)
    torch.testing.assert_close(peers.open_clip_info_nce(a, b, scale)["open_clip"](), info_nce(a, b, scale))
    found = peers.open_clip_sigmoid(a, b, scale, bias)["open_clip"]()
    torch.testing.assert_close(found, sigmoid_loss(a, b, scale, bias))


def test_vector_quantize_pytorch_runs_in_both_modes() -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="vector-quantize-pytorch is not installed")
    z, codebook = NearestCodeCase(12, 8, 4).inputs(torch.float32)
    for training in (False, True):
        _, codes, _ = peers.vector_quantize(z, codebook, "euclidean", training)["vector_quantize_pytorch"]()
        assert codes.shape == (1, 12)


def test_a_peer_that_is_not_installed_is_named_and_skipped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    peers._name_skipped.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    x = torch.zeros(2, 4)
    with caplog.at_level(logging.WARNING, "kernels"):
        assert peers.qwen3_experts(x, x, x, x) == {}
        assert peers.vector_quantize(x, x, "euclidean", training=True) == {}
        assert peers.open_clip_info_nce(x, x, x) == peers.open_clip_sigmoid(x, x, x, x) == {}
    libraries = ("transformers", "vector_quantize_pytorch", "open_clip")  # each once, however often it is asked for
    assert caplog.messages == [f"{library} is not installed: skipped" for library in libraries]
