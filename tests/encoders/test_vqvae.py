"""The bottleneck's three paths: both, codes alone, no codes; and what a decoder may see."""

import pytest
import torch

from encoders.base import Features
from encoders.quantizer import QuantizerConfig
from encoders.vqvae import Bottleneck, BottleneckConfig, FeatureDecoder, feature_reconstruction


def build(mode: str = "both", **quantizer: object) -> Bottleneck:
    torch.manual_seed(0)
    config = BottleneckConfig(mode, QuantizerConfig(num_codes=8, width=4, **quantizer))  # type: ignore[arg-type]
    return Bottleneck(config, features=6, width=10, max_tokens=5)


def features(rows: int = 3, tokens: int = 5, seed: int = 0) -> Features:
    x = torch.randn(rows, tokens, 6, generator=torch.Generator().manual_seed(seed))
    return Features(x, torch.arange(tokens) < 1 + torch.arange(rows)[:, None] * 2)


def test_with_codes_alone_tokens_are_a_function_of_the_codes() -> None:
    """Nothing leaks around: tokens can be computed from the code names and the position only."""
    bottleneck = build("vq").eval()
    out, _ = bottleneck(features())
    again = bottleneck.up(bottleneck.lookup(out.codes)) + bottleneck.position
    torch.testing.assert_close(out.tokens[out.mask], again[out.mask])
    assert bottleneck.bypass is None and not any("gate" in n or "bypass" in n for n, _ in bottleneck.named_parameters())


def test_a_continuous_path_has_neither_codes_nor_quantizer() -> None:
    bottleneck = build("continuous")
    out, vectors = bottleneck(features())
    assert vectors is None and (out.codes == -1).all() and not out.losses
    assert bottleneck.quantizer is None and bottleneck.down is None and bottleneck.up is None
    with pytest.raises(ValueError, match="continuous"):
        bottleneck.lookup(out.codes)


def test_a_closed_gate_leaves_the_codes() -> None:
    both, alone = build("both").eval(), build("vq").eval()
    alone.load_state_dict(both.state_dict(), strict=False)
    with torch.no_grad():
        both.gate.fill_(-100.0)
    torch.testing.assert_close(both(features())[0].tokens, alone(features())[0].tokens)


def test_the_summary_is_the_prefix_and_the_mean_of_what_is_real() -> None:
    bottleneck = Bottleneck(BottleneckConfig("continuous"), features=6, width=10, max_tokens=5, prefix=1)
    given = features()  # 1, 3 and 5 are real, the first the prefix
    summary = bottleneck(given)[0].summary
    normed = torch.nn.functional.layer_norm(given.tokens, (6,))
    assert summary.shape == (3, bottleneck.summary_width) and (summary[0, 6:] == 0).all()
    torch.testing.assert_close(summary[1], torch.cat([normed[1, 0], normed[1, 1:3].mean(0)]))


def test_the_decoder_does_not_see_the_bypass() -> None:
    bottleneck = build("both")
    _, vectors = bottleneck(features())
    vectors.sum().backward()
    assert bottleneck.bypass.weight.grad is None and bottleneck.gate.grad is None
    assert bottleneck.down.weight.grad.abs().sum() > 0  # straight through


def test_padding_changes_no_real_token_and_no_statistic() -> None:
    bottleneck, short = build().eval(), features(tokens=3)
    garbage, unreal = torch.full((3, 2, 6), 7.0), torch.zeros(3, 2, dtype=torch.bool)
    longer = Features(torch.cat([short.tokens, garbage], 1), torch.cat([short.mask, unreal], 1))
    (a, _), (b, vectors) = bottleneck(short), bottleneck(longer)
    torch.testing.assert_close(b.tokens[:, :3][short.mask], a.tokens[short.mask])
    assert (b.codes[~longer.mask] == -1).all() and not vectors[~longer.mask].any()
    torch.testing.assert_close(a.losses, b.losses)


def test_more_tokens_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens, but the encoder was built for at most 5"):
        build()(features(tokens=6))


def test_a_depth_of_quantizers_gives_as_many_codes() -> None:
    out, _ = build(kind="residual", quantizers=3)(features())
    assert out.codes.shape == (3, 5, 3)


def test_feature_reconstruction_counts_real_tokens_only() -> None:
    x = features()
    perfect = torch.nn.functional.layer_norm(x.tokens, (6,))
    assert feature_reconstruction(perfect, x).item() == 0
    perfect[~x.mask] += 100
    assert feature_reconstruction(perfect, x).item() == 0
    perfect[0, 0] += 3
    assert feature_reconstruction(perfect, x).item() == pytest.approx(9 / x.mask.sum().item(), rel=1e-4)
    assert FeatureDecoder(4, 6)(torch.randn(2, 5, 4)).shape == (2, 5, 6)


def test_feature_reconstruction_moves_the_decoder_and_not_its_target() -> None:
    tokens = torch.randn(2, 3, 4, requires_grad=True)
    decoded = torch.zeros(2, 3, 4, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    feature_reconstruction(decoded, Features(tokens, mask)).backward()
    assert decoded.grad is not None and decoded.grad.any() and tokens.grad is None
