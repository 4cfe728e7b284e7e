"""LitServe 0.2.19 with its own loop, in front of a model that does nothing."""

import time
from typing import Any

from fastapi import Request
from litserve import LitAPI, LitServer

__all__ = ["IdleAPI", "LitServer"]


class IdleAPI(LitAPI):
    """Does nothing for 4 ms, and gives back the number it was given."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: Request) -> str:  # type: ignore[override]
        """The text of a request, of which LitServe hands over the JSON."""
        return request["text"]  # type: ignore[index]

    def batch(self, inputs: list[str]) -> list[str]:
        """N texts."""
        return inputs

    def predict(self, x: list[str], **_: Any) -> list[float]:
        """N texts -> N numbers."""
        time.sleep(0.004)
        return [float(text) for text in x]

    def unbatch(self, output: list[float]) -> list[float]:
        """N numbers."""
        return output

    def encode_response(self, output: float) -> dict[str, float]:
        """As JSON."""
        return {"number": output}
