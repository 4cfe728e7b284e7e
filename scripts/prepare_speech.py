"""Let an installed synthesizer speak a captioned set's captions, so that it has images, text and audio.

python scripts/prepare_speech.py --root DIR --splits '[train,val]' --out SPOKEN     # DIR stays as it is
python scripts/train_align.py --data.root SPOKEN
"""

import logging

from mm.cli import run_command
from mm.data.coco import CocoFolder
from mm.data.prepare.console import console, count_bar, print_list, resumable
from mm.data.prepare.speech import SpeechPreparation, link_images, speak_split
from mm.data.prepare.synthesizers import build_synthesizer


def prepare_speech(config: SpeechPreparation) -> None:
    """Speak the captions of each split, and make the folder of audio clips a set of its own."""
    synthesizer = build_synthesizer(config.synthesizer, config.command)
    folder = config.out or config.root
    for split in config.splits:
        dataset = CocoFolder(config.root, split, karpathy=config.karpathy)
        with count_bar(split, len(dataset)) as advance:
            done = speak_split(
                dataset,
                folder,
                synthesizer,
                caption=config.caption,
                sample_rate=config.sample_rate,
                workers=config.workers,
                advance=advance,
            )
        print_list(f"{len(done.failed)} captions have no speech; going on without them:", done.failed)
        kept = f", {done.kept} kept from an earlier run" if done.kept else ""
        console.print(f"{split}: {done.rendered} captions spoken in {folder / 'audio'}{kept}")
    link_images(config.root, folder)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(message)s")
    with resumable("prepare_speech"):
        run_command(SpeechPreparation, prepare_speech)
