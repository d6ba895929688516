"""Text drawn from a text model: which token comes next, by the probabilities of its last step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat

import numpy as np
import numpy.typing as npt

from streamrnn_client.errors import BadParams, BadValue
from streamrnn_client.text import Vocabulary

__all__ = ["Sampler"]

BLOCK_TOKENS = 4096
MAX_TEMPERATURE = 1e6
MIN_TEMPERATURE = 1e-6  # but for 0


class Sampler:
    """How tokens are drawn, and the text that they go on from.

    Parameters
    ----------
    vocabulary : Vocabulary
        The model's.
    text : str or None
        What the drawn text goes on from, at least one token; None: the unknown token, which stands
        for whatever was before.
    num_tokens : int or None
        How many are drawn; None for as many as are asked for.
    temperature : float
        Each probability p becomes ``p ** (1 / temperature)``; 0 takes the most probable token.
    top_k : int
        Draw among the most probable k tokens; 0 for all.
    top_p : float
        Draw among the most probable tokens that have this share of the probability together (after
        temperature and top_k), at least one; 1 for all.
    seed : int or None
        Of all chance; None for another text every time.

    Raises
    ------
    BadParams
        If one cannot be used.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        text: str | None = None,
        num_tokens: int | None = None,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> None:
        if text is not None and (not isinstance(text, str) or not text):
            raise BadParams(
                f"text is {text!r:.60}; give at least one {vocabulary.unit} to go on from, or "
                "leave it out to begin with the unknown token"
            )
        if num_tokens is not None and not _is_whole(num_tokens):
            raise BadParams(f"num_tokens is {num_tokens!r}; it must be a whole number, or None")
        is_warm = _is_number(temperature) and MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE
        if not is_warm and not (_is_number(temperature) and temperature == 0):
            raise BadParams(
                f"temperature is {temperature!r}; it must be 0, or from {MIN_TEMPERATURE:g} to "
                f"{MAX_TEMPERATURE:g}"
            )
        if not _is_whole(top_k):
            raise BadParams(f"top_k is {top_k!r}; it must be a whole number, 0 for all tokens")
        if not _is_number(top_p) or not 0 < top_p <= 1:
            raise BadParams(f"top_p is {top_p!r}; it must be above 0 and at most 1")
        if seed is not None and not _is_whole(seed):
            raise BadParams(f"seed is {seed!r}; it must be a whole number from 0, or None")
        self.num_tokens = num_tokens
        unknown = np.array([vocabulary.unknown], np.uint32)
        self._tokens = unknown if text is None else vocabulary.encode(text)
        self._vocabulary = vocabulary
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._rng = np.random.default_rng(seed)

    def blocks(self) -> Iterator[npt.NDArray[np.uint32]]:
        """Yield the text's tokens, so many at once that their outputs take little memory."""
        for start in range(0, len(self._tokens), BLOCK_TOKENS):
            yield self._tokens[start : start + BLOCK_TOKENS]

    def turns(self) -> Iterable[object]:
        """Return something to iterate over, once for each token to be drawn."""
        return repeat(None) if self.num_tokens is None else range(self.num_tokens)

    def draw(self, y: npt.ArrayLike) -> tuple[int, str]:
        """Draw a token by the output of the step before it, [V]; return it and its text.

        The unknown token is not drawn. Raises `BadValue` if y gives nothing to any other.
        """
        token = self._draw(np.array(y, np.float64))
        return token, self._vocabulary.decode(token)

    def _draw(self, p: npt.NDArray[np.float64]) -> int:
        p[self._vocabulary.unknown] = 0.0
        if not p.max() > 0.0:
            raise BadValue("the model gives no token but the unknown one a probability above 0")
        if not self._temperature:
            return int(p.argmax())
        order = np.argsort(-p, kind="stable")
        if self._top_k:
            order = order[: self._top_k]
        with np.errstate(divide="ignore"):
            logs = np.log(p[order]) / self._temperature
        sums = np.cumsum(np.exp(logs - logs[0]))
        if self._top_p < 1.0:
            sums = sums[: np.searchsorted(sums, self._top_p * sums[-1]) + 1]
        drawn = np.searchsorted(sums, self._rng.random() * sums[-1], side="right")
        return int(order[min(drawn, len(sums) - 1)])


def _is_whole(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.floating) and not isinstance(value, bool)
