"""How deep must cross-modal attention look? One finished run evaluated at several depths of re-ranking, in one table.

    python scripts/rerank_depths.py --run runs/default
    python scripts/rerank_depths.py --run runs/flickr8k_recipe --root DIR --depths '[0, 5, 10]' --table depths.csv

The table is tidy, as scripts/ablate.py's: a depth is a variant. `seconds` are those of one evaluation, embedding
included. Depths that the table has are not evaluated again.
"""

from mm.cli import run_command
from mm.evaluation.config import RerankDepths


def main(config: RerankDepths) -> None:
    from mm.evaluation.depths import rerank_depths

    table = rerank_depths(config)
    print(f"{len(config.depths)} depths: {table}")


if __name__ == "__main__":
    run_command(RerankDepths, main)
