"""Types of arguments that several commands take."""

from __future__ import annotations

import argparse
import math

__all__ = ["share"]


def share(text: str) -> float:
    """Parse a number above 0 and below 1."""
    value = float(text)
    if not (0 < value < 1 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is no share; give a number above 0 and below 1")
    return value
