"""Eight bits as XNNPACK has them: the run's own integers, and what is rounded again."""

import pytest
import torch

from kernels.errors import UserError
from mm.artifacts.run import Run
from mm.compress.integers import pack
from mm.export.command import packed_weights
from mm.export.graph import graphs_of
from mm.export.xnnpack_integers import Int8Experts, Int8Linear, prepare_xnnpack
from mm.model.inference import DenseExperts, prepare


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_a_layer_multiplies_by_the_run_s_own_integers() -> None:
    torch.manual_seed(0)
    packed = pack(torch.randn(6, 16), 8)
    layer = Int8Linear(packed.integers(), packed.scale[:, 0], torch.ones(6))
    # Numbers that eight bits hold exactly leave what the weights alone do.
    x = torch.randint(-128, 128, (5, 16)).float()
    x[:, :2] = torch.tensor([-128.0, 127.0])
    torch.testing.assert_close(layer(x), x @ packed.unpack().T + 1, rtol=1e-5, atol=1e-3)
    x = torch.randn(2, 5, 16) * torch.tensor([1.0, 100.0])[:, None, None]
    expected = x @ packed.unpack().T + 1
    assert 0 < off(layer(x)[0], expected[0]) < 0.02 and off(layer(x)[1], expected[1]) < 0.02


def test_experts_keep_their_integers_but_for_the_rows_that_hold_all_of_them(writing_run: Run) -> None:
    block = writing_run.model.backbone.blocks[0].moe
    weights = packed_weights(writing_run, 8)
    w_in = weights["backbone.blocks.0.moe.w_in"]
    experts = Int8Experts(block, "", w_in)
    gate = experts.gate.values.float() * experts.gate.scale[:, None]
    torch.testing.assert_close(gate, w_in.unpack().chunk(2, 1)[0].flatten(0, 1))
    x = torch.randn(9, block.w_in.shape[2])
    chosen, shares, _ = block.router(x)
    assert 0 < off(experts(x, chosen, shares), DenseExperts(block, "")(x, chosen, shares)) < 0.05


def test_a_model_in_eight_bits_embeds_as_the_run_does(writing_run: Run) -> None:
    model = prepare_xnnpack(writing_run.model, packed_weights(writing_run, 8), rounds=True)
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert len(layers) > 10 and any(isinstance(module, Int8Experts) for module in model.modules())
    plain = {graph.name: graph for graph in graphs_of(writing_run.config, prepare(writing_run.model, DenseExperts))}
    for graph in graphs_of(writing_run.config, model):
        if graph.name.startswith("encode_"):
            assert 0 < off(graph.eager()[0], plain[graph.name].eager()[0]) < 0.05
    with pytest.raises(UserError, match="compress without --activation_bits 32"):
        prepare_xnnpack(writing_run.model, packed_weights(writing_run, 8), rounds=False)
