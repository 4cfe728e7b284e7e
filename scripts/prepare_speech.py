"""Let an installed synthesizer speak a captioned set's captions, so that it has images, text and audio.

python scripts/prepare_speech.py --root DIR --splits '[train,val]' --out SPOKEN     # DIR stays as it is
python scripts/train_align.py --data.root SPOKEN
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mm.cli import run_command
from mm.data.coco import CocoFolder
from mm.data.prepare.speech import build_synthesizer, mirror_pictures, speak_split

SHOWN = 10
console = Console(soft_wrap=True, highlight=False)


def prepare_speech(
    root: Path,
    out: Path | None = None,
    splits: Sequence[str] = ("train", "val"),
    karpathy: Path | None = None,
    synthesizer: str = "espeak-ng",
    command: str | None = None,
    caption: int = 0,
    sample_rate: int = 16000,
    workers: int | None = None,
) -> None:
    """Write one audio per image, `audio/<picture's stem>.flac`; started again, it goes on where it stopped.

    Args:
        root: the folder in COCO caption layout.
        out: folder for the audio clips, root itself if not given; it gets the annotations and links to images.
        splits: names as in `captions_<split>.json`, or Karpathy's with `karpathy`.
        karpathy: the official dataset_coco.json.
        synthesizer: espeak-ng.
        command: any other program, such as "flite -o {output} -t {text}"; {voice} too, and without {text} it is piped.
        caption: which of an image's captions is spoken, counted from 0.
        sample_rate: hertz.
        workers: synthesizer processes at a time; one per processor if not given.
    """
    speaker = build_synthesizer(synthesizer, command)
    folder = out or root
    for split in splits:
        dataset = CocoFolder(root, split, karpathy=karpathy)
        columns = (TextColumn(split), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(split, total=len(dataset))
            done = speak_split(
                dataset,
                folder,
                speaker,
                caption=caption,
                sample_rate=sample_rate,
                workers=workers,
                advance=lambda count: progress.advance(task, count),  # noqa: B023  # used in the loop
            )
        if done.failed:
            more = [f"… and {len(done.failed) - SHOWN} more"] if len(done.failed) > SHOWN else []
            lines = [f"{len(done.failed)} captions have no speech; going on without them:", *done.failed[:SHOWN], *more]
            console.print("\n  ".join(lines), markup=False)
        kept = f", {done.kept} kept from an earlier run" if done.kept else ""
        console.print(f"{split}: {done.rendered} captions spoken in {folder / 'audio'}{kept}")
    mirror_pictures(root, folder)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    try:
        run_command(prepare_speech)
    except KeyboardInterrupt:
        print("prepare_speech: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
