"""Names of arithmetics: what decides the bits of outputs besides model and inputs."""

from __future__ import annotations

import platform

from streamrnn.kernels.precisions import PRECISION_NAMES

__all__ = ["cpu_arithmetic", "cpu_arithmetics"]

_VERSION = 2  # to be raised whenever any output's bits change
_LAYERS_VERSION = 1  # of what is more than a stack of recurrent layers with a head; likewise


def cpu_arithmetic(precision: str, has_later_layers: bool) -> str:
    """Name what computes a model on this machine's processor.

    The vector width is not among it: all widths give the same bits. Models that ask for layers of
    later versions than the first have a number more, so that others keep theirs.
    """
    layers = f"-layers{_LAYERS_VERSION}" if has_later_layers else ""
    return f"cpu-{platform.machine()}-{precision}-{_VERSION}{layers}"


def cpu_arithmetics() -> list[str]:
    """Return all that this release computes on this machine's processor."""
    return [cpu_arithmetic(name, later) for name in PRECISION_NAMES for later in (False, True)]
