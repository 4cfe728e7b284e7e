"""Adapters on linear layers and on fused experts: what they reach, that they start at zero, and come off again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

peft = pytest.importorskip("peft")

from encoders.trunks import NO_WEIGHTS  # noqa: E402
from mm.artifacts.adapter import AdapterDescription, load_adapter, save_adapter  # noqa: E402 - after the skip
from mm.artifacts.run import Run  # noqa: E402
from mm.batch import Batch  # noqa: E402
from mm.compress.lora import LoraConfig, adapter_tensors, attach, coverage, merge, merge_and_unload  # noqa: E402
from mm.config import AlignConfig  # noqa: E402
from mm.model.multimodal import MatchInput  # noqa: E402

BOTH = LoraConfig(rank=4, targets=("q_proj", "v_proj", "w_in", "w_out"))


@pytest.fixture
def outputs(tiny_batch: Callable[..., Batch]) -> Callable[[Run], torch.Tensor]:
    """All embeddings of a batch and its match logits, in evaluation mode, in one vector."""

    @torch.no_grad()
    def read(run: Run) -> torch.Tensor:
        run.eval()
        found = run.model(tiny_batch(), reconstruct=False)
        pair = MatchInput("image", "text", found.encoded["image"], found.encoded["text"])
        (logits,) = run.model.match([pair]).logits
        return torch.cat([*(v.flatten() for v in found.embeddings.values()), logits])

    return read


def learned(model: nn.Module) -> None:
    """Adapters as after training: none of their factors is zero."""
    torch.manual_seed(1)
    for tensors in adapter_tensors(model):
        for tensor in tensors.values():
            nn.init.normal_(tensor, std=0.2)


def test_the_default_is_the_papers() -> None:
    assert LoraConfig() == LoraConfig(16, 32.0, 0.1, ("q_proj", "v_proj"))


def test_a_new_adapter_changes_nothing_and_a_trained_one_does(tiny_run, outputs) -> None:
    run = tiny_run()
    plain = outputs(run)
    attach(run.model, BOTH)
    torch.testing.assert_close(outputs(run), plain, atol=1e-5, rtol=0)
    learned(run.model)
    assert (outputs(run) - plain).abs().max() > 0.01


def test_every_parameter_is_in_the_report_once(tiny_run) -> None:
    model = tiny_run().model
    found = coverage(model, BOTH)
    assert {**found.targeted, **found.untargeted}.keys() == dict(model.named_parameters()).keys()
    assert not found.targeted.keys() & found.untargeted.keys()
    assert found.targeted["backbone.blocks.1.moe.w_in"] == (8, 16, 32)
    assert "backbone.blocks.0.cross_attention.v_proj.weight" in found.targeted
    assert "adapted   backbone.blocks.0.moe.w_out 8×32×8" in found.lines()
    assert "untouched backbone.blocks.0.moe.router.affinity 8×32" in found.lines()


def test_only_the_adapters_train_and_every_expert_that_is_used_has_a_gradient(tiny_run, tiny_batch) -> None:
    run = tiny_run()
    attach(run.model, BOTH)
    learned(run.model)
    run.model(tiny_batch(), reconstruct=False).embeddings["image"].sum().backward()
    trained = {n for n, p in run.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    factors = run.model.backbone.blocks[0].moe.parametrizations.w_in[0]
    assert factors.lora_A.shape == (8, 4, 32) and (factors.lora_B.grad.flatten(1).norm(dim=1) > 0).sum() >= 2


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("w_in", "w_out"), BOTH.targets])
def test_merging_unmerging_and_loading_keep_the_outputs(
    tiny_run, outputs, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    run, config = tiny_run(), replace(BOTH, targets=targets)
    base, plain = run.fingerprint(), outputs(run)
    attach(run.model, config)
    learned(run.model)
    adapted = outputs(run)
    for merged in (True, False):
        merge(run.model, merged)
        torch.testing.assert_close(outputs(run), adapted, atol=1e-5, rtol=0)
    save_adapter(run.model, AdapterDescription(config, base), tmp_path)
    again = tiny_run()
    assert load_adapter(again, tmp_path) == config
    torch.testing.assert_close(outputs(again), adapted, atol=1e-5, rtol=0)
    names = again.model.state_dict().keys()
    merge_and_unload(again.model)
    torch.testing.assert_close(outputs(again), adapted, atol=1e-5, rtol=0)
    assert again.model.state_dict().keys() == tiny_run().model.state_dict().keys() != names
    assert (adapted - plain).abs().max() > 1e-3


def test_peft_itself_reads_the_file(tiny_run, outputs, tmp_path: Path) -> None:
    run, config = tiny_run(), LoraConfig(rank=4)
    base = run.fingerprint()
    attach(run.model, config)
    learned(run.model)
    save_adapter(run.model, AdapterDescription(config, base), tmp_path)
    other = tiny_run()
    other.model = peft.PeftModel.from_pretrained(other.model, str(tmp_path)).base_model.model
    torch.testing.assert_close(outputs(other), outputs(run), atol=1e-5, rtol=0)


def test_an_adapter_of_another_base_is_refused(tiny_run, tmp_path: Path) -> None:
    run = tiny_run()
    base = run.fingerprint()
    attach(run.model, BOTH)
    save_adapter(run.model, AdapterDescription(BOTH, base), tmp_path)
    other = tiny_run()
    nn.init.normal_(other.model.project["image"].linear.weight)
    with pytest.raises(ValueError, match="was trained on another base: these weights behave differently"):
        load_adapter(other, tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "experts.safetensors"])
def test_a_last_bit_of_an_adapter_is_noticed(tiny_run, tmp_path: Path, name: str) -> None:
    run = tiny_run()
    base = run.fingerprint()
    attach(run.model, BOTH)
    save_adapter(run.model, AdapterDescription(BOTH, base), tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-4] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged or another file"):
        load_adapter(tiny_run(), tmp_path)
    described = json.loads((tmp_path / "adapter.json").read_text())
    del described["sha256"]  # as in older adapters
    (tmp_path / "adapter.json").write_text(json.dumps(described))
    load_adapter(tiny_run(), tmp_path)


def test_a_damaged_description_is_named(tiny_run, tmp_path: Path) -> None:
    run = tiny_run()
    attach(run.model, BOTH)
    save_adapter(run.model, AdapterDescription(BOTH, tiny_run().fingerprint()), tmp_path)
    described = json.loads((tmp_path / "adapter.json").read_text())
    described["base"]["digest"] = "0" * 16
    (tmp_path / "adapter.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=rf"the adapter {tmp_path} cannot be read: the stored fingerprint is damaged"):
        load_adapter(tiny_run(), tmp_path)


def test_a_folder_without_an_adapter_is_named(tiny_run, tmp_path: Path) -> None:
    for content in (None, "{", json.dumps({"kind": "lora"})):
        if content:
            (tmp_path / "adapter.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"holds no adapter: expected adapter\.json|cannot be read: .*adapter\.json is not JSON"
        ):
            load_adapter(tiny_run(), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            LoraConfig(4, targets=("q_proj", "queries")),
            "'queries' is no linear layer nor expert weight of this model; it has .*q_proj.*w_in",
        ),
        (LoraConfig(4, targets=("self_norm",)), "'self_norm' is no linear layer"),
        (LoraConfig(33), r"lora.rank=33 is larger than \S+_proj.weight, whose matrices are 32×32: at most 32"),
        (LoraConfig(9, targets=("w_out",)), r"lora.rank=9 is larger than \S+w_out, whose matrices are 32×8: at most 8"),
    ],
)
def test_what_cannot_be_adapted_is_one_line(tiny_run, config: LoraConfig, message: str) -> None:
    model = tiny_run().model
    with pytest.raises(ValueError, match=message):
        attach(model, config)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("settings", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}])
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="lora"):
        LoraConfig(**settings)


def test_a_target_in_a_frozen_trunk_alone_is_refused(tiny: AlignConfig, tiny_run) -> None:
    def model(frozen: bool) -> nn.Module:
        image = replace(tiny.image, trunk="timm/test_vit", weights=NO_WEIGHTS, frozen=frozen)
        return tiny_run(image=image, model=replace(tiny.model, modalities=("image", "audio"))).model

    config = LoraConfig(4, targets=("q_proj", "qkv"))
    with pytest.raises(ValueError, match=r"lora.targets: 'qkv' is only in a frozen trunk .*leave the target out"):
        attach(model(frozen=True), config)
    assert any(name.startswith("encoders.image.trunk.") for name in coverage(model(frozen=False), config).targeted)


def test_of_a_target_elsewhere_too_the_frozen_trunk_is_left_out(tiny: AlignConfig, tiny_run) -> None:
    image = replace(tiny.image, trunk="timm/test_vit", weights=NO_WEIGHTS, frozen=True)
    found = coverage(tiny_run(image=image).model, LoraConfig(4, targets=("qkv",)))
    assert found.targeted and all(name.startswith("encoders.text.") for name in found.targeted)
    assert "encoders.image.trunk.model.blocks.0.attn.qkv.weight" in found.untargeted
