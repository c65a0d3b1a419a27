"""Times of blocks of work on a device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch


class Stopwatch:
    """Measures blocks by name. A GPU is not made to wait: its events are read only by `collect`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, list[float]] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []  # name, start, end

    @contextlib.contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure the block."""
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
            return
        begin = time.perf_counter()
        yield
        self._seconds.setdefault(name, []).append(time.perf_counter() - begin)

    def collect(self) -> dict[str, list[float]]:
        """Return the seconds of all blocks since the last call, by name. A GPU has to reach the last one's end."""
        for name, start, end in self._events:
            end.synchronize()
            self._seconds.setdefault(name, []).append(start.elapsed_time(end) / 1000)
        seconds, self._seconds = self._seconds, {}
        self._events.clear()
        return seconds
