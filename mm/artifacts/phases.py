"""Where the time of a run goes."""

import time


class Phases:
    """Seconds of a run by phase, each of which begins where the one before ended; the first begins now."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def end(self, name: str) -> None:
        """What has run since the last phase was `name`."""
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._began, 2)
        self._began = now

    @property
    def total(self) -> float:
        """Seconds of all phases that ended."""
        return round(sum(self.seconds.values()), 1)
