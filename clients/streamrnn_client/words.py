"""Words for numbers, in what people read."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: float, noun: str, plural: str = "") -> str:
    """Return ``1 row`` or ``1,000 rows``; ``plural`` if it takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
