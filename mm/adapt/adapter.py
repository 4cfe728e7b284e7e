"""The adapter on disk that fine-tuning writes, which `mm.artifacts.adapter` defines and `load_run` reads."""

from mm.artifacts.adapter import AdapterDescription, save_adapter

__all__ = ["AdapterDescription", "save_adapter"]
