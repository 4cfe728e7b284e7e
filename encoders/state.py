"""Weights on disk and in memory: safetensors in and out, what differs between two states, and digests.

Files are read as safetensors or with `weights_only=True`: nothing in them is executed. A VQ-VAE is saved without the
side of its encoder that faces a backbone it never saw.
"""

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kernels.errors import UserError

BACKBONE_SIDE = ("bottleneck.up.", "bottleneck.bypass.", "bottleneck.gate", "bottleneck.position")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from a torch file with `weights_only=True`; tensors are cast to float32."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"weights file {path} does not exist: name a .safetensors file, or leave it out to have the library's own"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise UserError(
            f"weights file {path} cannot be read ({reason}): it must hold tensors by name, and be whole"
        ) from error
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """A state dict as safetensors, atomically, readable by whom the umask allows."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.touch()
    mode = temporary.stat().st_mode
    save_file(kept, temporary)  # makes a file of mode 0600, whatever the umask
    temporary.chmod(mode)
    temporary.replace(path)


def load_weights(module: nn.Module, path: str | Path, unused: tuple[str, ...] = ()) -> None:
    """Read `path` into `module`.

    Args:
        module: whose names and shapes the file must have.
        path: see `read_weights`.
        unused: names of submodules that the file may hold and `module` lacks.

    Raises:
        ValueError: it is another model's; the first difference is named.
    """
    loaded = read_weights(path)
    if unused:
        beginnings = tuple(f"{name}." for name in unused)
        loaded = {name: value for name, value in loaded.items() if not name.startswith(beginnings)}
    if differs := first_difference(loaded, module.state_dict()):
        raise UserError(f"weights file {path} does not fit the model: {differs}")
    module.load_state_dict(loaded)


def first_difference(loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first tensor by name that is not in both states, or not in one shape, in words; "" where they fit."""
    for name in sorted(loaded.keys() | expected.keys()):
        there, here = (tuple(state[name].shape) if name in state else "absent" for state in (loaded, expected))
        if there != here:
            return f"{name} is {there} in the file and {here} here"
    return ""


def weights_digest(module: nn.Module) -> str:
    """A short sha256 over all parameters and buffers, by name, and over how coarsely layers read: the identity of a
    trunk in a cache key or a fingerprint.

    A layer that rounds what it reads says so as `activation_bits`.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu() + 0  # -0.0 becomes 0.0: an average of equal weights turns the sign of zeros
        if tensor.ndim:
            content = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        else:
            content = str(tensor.item()).encode()
        digest.update(key.encode())
        digest.update(content)
    for name, part in module.named_modules():
        bits = getattr(part, "activation_bits", None)
        if bits is not None:
            digest.update(f"{name} reads {bits} bits".encode())
    return digest.hexdigest()[:16]


def faces_backbone(name: str) -> bool:
    """Whether a parameter makes tokens for the backbone, and so has no part in a VQ-VAE."""
    return name.startswith(BACKBONE_SIDE)


def vqvae_state(encoder: nn.Module) -> dict[str, Tensor]:
    """An encoder's state, trunk, codes and decoder, without what faces the backbone."""
    kept = {}
    for name, value in encoder.state_dict().items():
        if not faces_backbone(name):
            kept[name] = value.detach().cpu().contiguous()
    return kept


def save_encoder(encoder: nn.Module, path: str | Path) -> None:
    """Write `vqvae_state` as safetensors."""
    write_weights(vqvae_state(encoder), Path(path))


def load_encoder(encoder: nn.Module, path: str | Path) -> None:
    """Start `encoder` from a file of `save_encoder`; what faces the backbone keeps its values.

    Raises ValueError, naming the first difference, where the file was made with other settings.
    """
    loaded = read_weights(path)
    if differs := first_difference(loaded, vqvae_state(encoder)):
        raise UserError(
            f"{path} does not fit this encoder: {differs}; "
            "use the settings of the run that wrote it, in config.yaml beside it"
        )
    encoder.load_state_dict(loaded, strict=False)
