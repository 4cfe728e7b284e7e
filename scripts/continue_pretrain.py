"""Continued pre-training of a finished run on a domain, mixed with its own set so that it does not forget.

    python scripts/continue_pretrain.py --run runs/flickr8k --data.root data/molecules --terms terms.txt
    python scripts/continue_pretrain.py --run runs/flickr8k --data.root DIR --mix.domain 0.5 --mix.general 0.5
    python scripts/continue_pretrain.py --run runs/flickr8k --data.root DIR --optim.learning_rate 1e-4

Every step minimises 0.7 of the loss on the domain and 0.3 of the loss on the run's own training set, at a learning rate
that begins at 1e-5 and falls to 0.8 of it at each of four stages. `--terms` is a file with a term in each line:
attention is drawn to their tokens, by a bias that each head learns. Writes runs/<name>/: a run like any other; its
result.json has `continued`: both sets before and after, the terms seen and skipped, and the biases.
"""

from mm.adapt.config import ContinueConfig
from mm.cli import run_command
from mm.effects import CONTINUE


def main(config: ContinueConfig) -> None:
    from mm.adapt.continued import continue_pretrain

    continue_pretrain(config)


if __name__ == "__main__":
    run_command(ContinueConfig, main, log=True, needs=CONTINUE)
