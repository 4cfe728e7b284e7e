"""What is exported of a run: a graph for each thing it does, with the inputs that it is traced and checked with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mm.config import AlignConfig, encoders_of
from mm.modalities import probe_batch
from mm.model.inference import DecodeStep, Describe, EncodeAudio, EncodeImage, EncodeText, Match
from mm.model.multimodal import MultimodalModel
from mm.model.writer import Writer

BATCH = Dim("batch", min=1, max=4096)
ENCODERS: dict[str, Any] = {"image": EncodeImage, "text": EncodeText, "audio": EncodeAudio}
FILLED = 4
"""Positions of the cache that hold something where a decode step is traced."""


@dataclass(frozen=True)
class Graph:
    """One module that is exported.

    Args:
        name: encode_image, encode_text, encode_audio, match, describe_image, describe_audio or decode_step.
        module: in evaluation mode; it takes tensors and returns one or a tuple of them.
        inputs: by name, of the probe batch.
        sizes: by name of an input, its dimensions that vary.
        outputs: their names, with a dot, which no operation's name has: torch.onnx gives both the same namespace.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    sizes: dict[str, Any]
    outputs: tuple[str, ...]

    def named(self) -> dict[str, Tensor]:
        """The inputs that are tensors by name: of a group `beside` these are beside_0, beside_1, …"""
        found = {}
        for name, value in self.inputs.items():
            if isinstance(value, Tensor):
                found[name] = value
            else:
                found |= {f"{name}_{number}": part for number, part in enumerate(value)}
        return found

    @torch.no_grad()
    def program(self) -> ExportedProgram:
        """The graph as torch has it, of operations that change nothing in place.

        It is traced non-strictly: strict tracing ends where a kernel asks what the processor can do.
        """
        arguments = tuple(self.inputs.values())
        sizes = tuple(self.sizes.values())
        program = torch.export.export(self.module, arguments, dynamic_shapes=sizes, strict=False)
        return without_statistics(program.run_decompositions({}))

    @torch.no_grad()
    def eager(self) -> tuple[Tensor, ...]:
        """What the module itself makes of the inputs."""
        found = self.module(*self.inputs.values())
        return found if isinstance(found, tuple) else (found,)


def without_statistics(program: ExportedProgram) -> ExportedProgram:
    """Leave out what statistics are made of, which nobody reads but torch's assertions of dtypes."""
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten._assert_tensor_metadata.default):
        program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def graphs_of(config: AlignConfig, model: MultimodalModel, batch: Dim = BATCH) -> Iterator[Graph]:
    """Everything that a run does, a graph each.

    Args:
        config: of the run.
        model: as `prepare` makes it of the run's, on the CPU.
        batch: the rows that a graph takes.
    """
    probe = probe_batch(encoders_of(config))
    of: dict[str, dict[str, Tensor]] = {}
    sizes: dict[str, dict[str, Any]] = {}
    for modality in model.modalities:
        # A part of a wider tensor would be traced with its strides, and exclude texts as long as the whole.
        of[modality] = {modality: probe.inputs[modality].contiguous()}
        if modality in probe.masks:
            of[modality][f"{modality}_mask"] = probe.masks[modality].contiguous()
        axes = {0: batch}
        if modality == "text":
            axes[1] = Dim("length", min=2, max=config.text.max_tokens)
        sizes[modality] = dict.fromkeys(of[modality], axes)
        yield Graph(f"encode_{modality}", ENCODERS[modality](model), of[modality], sizes[modality], ("out.embedding",))
    if {"image", "text"} <= set(model.modalities):
        yield Graph("match", Match(model), of["image"] | of["text"], sizes["image"] | sizes["text"], ("out.logit",))
    if model.causal is not None:
        for modality in model.modalities:
            if modality != "text":
                yield describing(model, modality, of[modality], sizes[modality])
        yield decoding(model, of, batch)


def describing(model: MultimodalModel, modality: str, inputs: dict[str, Tensor], sizes: dict[str, Any]) -> Graph:
    """What text is written beside, of one modality."""
    return Graph(
        f"describe_{modality}", Describe(model, modality), inputs, sizes, ("out.keys", "out.values", "out.mask")
    )


def decoding(model: MultimodalModel, of: dict[str, dict[str, Tensor]], batch: Dim) -> Graph:
    """One token behind a cache, beside what was read of an image, or of audio where the model sees no images.

    Args:
        model: of `prepare`.
        of: inputs by modality and name.
        batch: the rows that the graph takes.
    """
    modality = next(m for m in of if m != "text")
    ids = of["text"]["text"][:, :1].contiguous()
    rows = len(ids)
    layers, _, heads, context, head_width = Writer(model).cache(1).keys.shape
    seen = len(model.encoders[modality].bottleneck.position)
    draws = torch.Generator().manual_seed(0)
    # Of the cache's positions the last is for padding, which a step of one token has none of.
    held = torch.randn((2, layers, rows, heads, context - 1, head_width), generator=draws)
    read = torch.randn((2, layers, rows, heads, seen, head_width), generator=draws)
    beside = (read[0], read[1], torch.ones(rows, seen, dtype=torch.bool))
    inputs = {"ids": ids, "at": torch.full((rows,), FILLED), "keys": held[0], "values": held[1], "beside": beside}
    condition = Dim("condition", min=1, max=4096)
    cache = {1: batch}
    parts = {1: batch, 3: condition}
    sizes: dict[str, Any] = {"ids": {0: batch}, "at": {0: batch}, "keys": cache, "values": cache}
    sizes["beside"] = (parts, parts, {0: batch, 1: condition})
    return Graph("decode_step", DecodeStep(model), inputs, sizes, ("out.logits", "out.keys", "out.values"))
