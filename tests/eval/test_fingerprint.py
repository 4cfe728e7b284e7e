"""A fingerprint survives rounding and notices another function."""

import json

import pytest
import torch

from eval.fingerprint import Fingerprint, FingerprintError, check, fingerprint

torch.manual_seed(0)
WEIGHT, PROBE = torch.randn(64, 32) / 32**0.5, torch.randn(8, 32)


def model(activation=torch.nn.functional.gelu, dtype=torch.float32, mean=0.0):
    def outputs():
        return {"image": activation((PROBE.to(dtype) - mean) @ WEIGHT.T.to(dtype)).float().numpy()}

    return outputs


def stored():
    return Fingerprint.of_json(json.loads(json.dumps(fingerprint(model()).as_json())))


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        {},
        {"outputs": None},
        {"outputs": {"a": 1}},
        {"outputs": {"a": {"half": "x", "shape": [1]}}},
        {"outputs": {"a": {"half": "AAA=", "shape": None}}},
        {"outputs": {}},
    ],
)
def test_what_is_no_fingerprint_is_said_in_a_line(damaged):
    with pytest.raises(FingerprintError, match="the stored fingerprint is none: "):
        Fingerprint.of_json(damaged)


def test_the_same_function_passes_in_bf16_too():
    assert check(stored(), model()) < 1e-3
    assert check(stored(), model(dtype=torch.bfloat16)) > 0
    assert stored().digest == fingerprint(model()).digest


@pytest.mark.parametrize(
    "other",
    [
        {"activation": torch.nn.functional.relu},
        {"activation": lambda x: x * torch.sigmoid(1.702 * x)},
        {"mean": 0.5},
    ],
)
def test_another_activation_or_normalisation_is_an_error_that_says_so(other):
    with pytest.raises(FingerprintError, match=r"off by .*activation, tokenizer or normalisation"):
        check(stored(), model(**other))


def test_other_outputs_other_shapes_and_damage_are_errors():
    with pytest.raises(FingerprintError, match="text"):
        check(stored(), lambda: {"text": torch.ones(2)})
    with pytest.raises(FingerprintError, match="shape"):
        check(stored(), lambda: {"image": torch.ones(2)})
    with pytest.raises(FingerprintError, match="finite"):
        fingerprint(lambda: {"image": torch.tensor([float("nan")])})
    damaged = fingerprint(model()).as_json() | {"digest": "0" * 16}
    with pytest.raises(FingerprintError, match="damaged"):
        Fingerprint.of_json(damaged)
