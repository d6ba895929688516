"""Signals that come when a test wants them."""

from __future__ import annotations

from streamrnn.training.fit.stop import StopSignals

__all__ = ["StopAfter"]


class StopAfter(StopSignals):
    """As if Ctrl-C came after so many updates."""

    def __init__(self, num_updates: int) -> None:
        super().__init__()
        self.left = num_updates

    def __call__(self) -> bool:
        """Count an update."""
        self.left -= 1
        self.received = 2 if self.left < 0 else 0
        return bool(self.received)
