"""Text as tokens: how a text model's text is cut, and the vocabulary that numbers the pieces.

A text model has one input of tokens whose unit is ``char`` or ``word``, and whose names are the
pieces of text. The trainer and ``streamrnn sample`` cut by the same rule.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamrnn_client.protocol.input_names import UNKNOWN

__all__ = ["MAX_WORD", "UNITS", "UNKNOWN", "Vocabulary", "cut", "is_of_text"]

UNITS = ("char", "word")
MAX_WORD = 64
_UNKNOWN_AS_TEXT = "\ufffd"  # Unicode's character for what is not known
_WORD = re.compile(rf" ?\w{{1,{MAX_WORD}}}| ?[^\w\s]|\s")
_NUM_CODE_POINTS = 0x110000

Codes = npt.NDArray[np.int32]


def cut(text: str, unit: str) -> tuple[list[str], Codes]:
    """Cut a text into its pieces, which put together are the text again.

    ``char``: every character. ``word``: a run of letters, digits and underscores, of at most
    `MAX_WORD`; or one other character. A single space before either belongs to it.

    Returns the different pieces, and for each piece of the text its index among them, [T].
    """
    if unit == "char":
        points = _code_points(text)
        known = np.flatnonzero(np.bincount(points))
        index_of = np.zeros(_NUM_CODE_POINTS, np.int32)
        index_of[known] = np.arange(len(known))
        return [chr(point) for point in known.tolist()], index_of[points]
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__
    pieces = (match[0] for match in _WORD.finditer(text))
    numbers = np.fromiter((index[piece] for piece in pieces), np.int32)
    return list(index), numbers


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def is_of_text(inputs: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a model's inputs, as its description has them, are one of text."""
    first = inputs[0]
    return (
        first["kind"] == "token" and first.get("unit") in UNITS and UNKNOWN in first["categories"]
    )


class Vocabulary:
    """The pieces of text that a model knows, by their numbers.

    Parameters
    ----------
    unit : str
        One of `UNITS`.
    names : sequence of str
        The pieces in the order of their numbers, `UNKNOWN` being one.

    Attributes
    ----------
    unknown : int
        The number of `UNKNOWN`.

    Raises
    ------
    ValueError
        If they are no vocabulary.
    """

    def __init__(self, unit: str, names: Sequence[str]) -> None:
        self.unit = unit
        self._index = {name: k for k, name in enumerate(names)}
        if unit not in UNITS or UNKNOWN not in self._index or len(self._index) < len(names):
            raise ValueError(f"{len(names)} names of unit {unit!r} are no vocabulary")
        self.unknown = self._index[UNKNOWN]
        texts = list(names)
        texts[self.unknown] = _UNKNOWN_AS_TEXT
        self._texts = np.array(texts, object)
        if unit == "char":
            if any(len(text) != 1 for text in texts):
                raise ValueError("a character's name is longer than one character")
            self._of_point = np.full(_NUM_CODE_POINTS, self.unknown, np.uint32)
            own = [k for k in range(len(texts)) if k != self.unknown]
            self._of_point[[ord(texts[k]) for k in own]] = own

    def __len__(self) -> int:
        return len(self._texts)

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the numbers of a text's pieces, [T]; `unknown` for those not known."""
        if self.unit == "char":
            return self._of_point[_code_points(text)]
        pieces = (match[0] for match in _WORD.finditer(text))
        return np.fromiter((self._index.get(piece, self.unknown) for piece in pieces), np.uint32)

    def decode(self, tokens: npt.ArrayLike) -> str:
        """Return the text of tokens, U+FFFD in the place of `unknown`.

        Raises `ValueError` if one is no whole number from 0 to the number of tokens.
        """
        array = np.atleast_1d(np.asarray(tokens))
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(
                f"tokens are {array.dtype} {list(array.shape)}; give whole numbers, [T]"
            )
        if array.size and (array.min() < 0 or array.max() >= len(self)):
            wrong = array.min() if array.min() < 0 else array.max()
            raise ValueError(f"there is no token {wrong}; they are from 0 to {len(self) - 1}")
        return "".join(self._texts[array.astype(np.intp)])
