"""`mm-align`: one word in front of what the scripts do, wherever the package is installed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """One word, and what it calls. Functions are named, not imported: --help waits for none of them.

    Args:
        about: what it does, in one line.
        takes: `module:name` of its settings' dataclass, or of the function whose arguments are its options.
        then: `module:name` of the function that is handed the settings.
        example: its options, as one might type them.
        positional: arguments without a default need no --name.
        listed: the argument that the words in front of any option are.
        needs: where the list is of what its options need to have an effect.
    """

    about: str
    takes: str
    then: str = ""
    example: str = ""
    positional: bool = False
    listed: str | None = None
    needs: str = ""


COMMANDS = {
    "train": Command(
        "train, evaluate and report one run",
        "mm.config:AlignConfig",
        "mm.train.align:train_align",
        "--config flickr8k --data.root DIR",
        needs="mm.effects:ALIGN",
    ),
    "eval": Command(
        "evaluate a run, an open_clip model or anybody's vectors",
        "mm.evaluation.config:EvalCoco",
        "mm.evaluation.request:eval_coco",
        "--run runs/default",
    ),
    "search": Command(
        "find the images of a folder by text, image or sound",
        "mm.infer.search:search",
        example='"a red bus" --index DIR --images FOLDER --model runs/default',
        positional=True,
    ),
    "generate": Command(
        "write captions of images and sounds, or what follows a prefix",
        "mm.infer.write_command:generate",
        example="runs/x --images '[photo.jpg]' --decoding.beams 3",
        positional=True,
    ),
    "serve": Command(
        "serve a run: embed, match, search, caption, a search page",
        "mm.serve.config:ServeConfig",
        "mm.serve.command:serve",
        "runs/default --index DIR --images FOLDER",
        positional=True,
    ),
    "adapt": Command(
        "adapt a run to another set: LoRA, QLoRA or all weights",
        "mm.adapt.config:FinetuneConfig",
        "mm.adapt.finetune:finetune",
        "--run runs/default --data.root DIR",
        needs="mm.effects:FINETUNE",
    ),
    "compress": Command(
        "store a run in eight or four bits, trained for it where asked",
        "mm.adapt.compression:CompressConfig",
        "mm.adapt.compression:compress",
        "runs/default --bits 8 --qat 100",
        positional=True,
        needs="mm.effects:COMPRESS",
    ),
    "export": Command(
        "write a run for ONNX Runtime, AOTInductor or ExecuTorch",
        "mm.export.command:export",
        example="runs/default --to onnx --bits 8",
        positional=True,
    ),
    "compare": Command(
        "put runs side by side, with paired tests",
        "mm.evaluation.compare:compare_runs",
        example="runs/a runs/b",
        listed="runs",
    ),
    "push": Command(
        "push a run or an adapter to a hub, with its card",
        "mm.hub.push:push",
        example="runs/default org/name --revision v1",
        positional=True,
    ),
    "pull": Command(
        "pull a run or an adapter from a hub, checked",
        "mm.hub.pull:pull",
        example="org/name@v1 --out DIR",
        positional=True,
    ),
    "plan": Command(
        "rank every way to divide a run among GPUs, by a stated model",
        "mm.parallel.plan:PlanConfig",
        "mm.parallel.plan:plan",
        "--config 70b --gpus 256 --memory 80",
    ),
    "list": Command(
        "list configs, trunks, runs or datasets",
        "mm.listing:show_list",
        example="configs",
        positional=True,
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an unknown one ends the process with code 2 and one line.

    Args:
        arguments: stand in for the command line's.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    name, *options = words
    from mm.cli import Program, nearest_name, run_command  # what parses options is not waited for by --help

    if name not in COMMANDS:
        said = nearest_name(name, list(COMMANDS))
        print(f"mm-align: no command {name!r}; {said} `mm-align --help` lists them", file=sys.stderr)
        sys.exit(2)
    command = COMMANDS[name]
    call = f"mm-align {name}"
    description = f"{command.about[0].upper()}{command.about[1:]}.\n\n    {call} {command.example}"
    run_command(
        named(command.takes),
        named_later(command.then) if command.then else None,
        options,
        command.positional,
        log=True,
        listed=command.listed,
        program=Program(call, call, description),
        needs=named(command.needs) if command.needs else (),
    )


def named(place: str) -> Any:
    """The object at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def named_later(place: str) -> Any:
    """A function that imports the one at `module:name` when it is called, after the options are known to be right."""

    def call(settings: Any) -> None:
        named(place)(settings)

    return call


def overview() -> str:
    """What --help prints: every command, and how one is called."""
    lines = ["usage: mm-align COMMAND [--OPTION VALUE …]", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<9}{command.about}")
    lines.append("")
    lines.extend(f"  mm-align {name} {command.example}" for name, command in COMMANDS.items())
    lines += [
        "",
        "mm-align COMMAND --help lists the options of a command.",
        "--config takes a file or a preset's name.",
    ]
    return "\n".join(lines)
