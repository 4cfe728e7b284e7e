"""The low-rank adapters that fine-tuning attaches, which `mm.compress.lora` defines."""

from mm.compress.lora import attach, coverage, merge_and_unload

__all__ = ["attach", "coverage", "merge_and_unload"]
