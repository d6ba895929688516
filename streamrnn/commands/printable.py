r"""Text from elsewhere on a terminal: what is not printable is written as Python escapes it.

Control characters, line ends and escape sequences in the id of a stream would move the cursor, or
look like another line. A backslash is written twice, so that what is shown can be typed back.
"""

from __future__ import annotations

import re

__all__ = ["printable", "unescaped"]

_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[nrt\\])")


def printable(text: str) -> str:
    """Return a text on one line, without anything that a terminal could take for a command."""
    return "".join(
        char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode()
        for char in text
    )


def unescaped(text: str) -> str:
    """Return what `printable` was given; what is no escape stands for itself."""
    return _ESCAPE.sub(lambda match: match[0].encode().decode("unicode_escape"), text)
