"""How much each class counts in the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import TrainingError, listed, suggestion
from streamrnn.model.checks import shown

__all__ = ["BALANCED", "class_weights"]

BALANCED = "balanced"
_MAX_WEIGHT = 1e6


def class_weights(
    given: tuple[str, ...], names: tuple[str, ...], training: Sequence[NDArray[np.float32]]
) -> tuple[float, ...]:
    """Return the weight of each class, with a mean of 1 over the training part's targets.

    ``given`` is ``("balanced",)``, which makes all classes count the same in sum, or holds
    ``NAME=WEIGHT``, 1 for the others; ``training`` are the classes by index, NaN where missing.
    Raises `TrainingError` if a class is not known or a weight is none.
    """
    known = np.concatenate(training)
    counts = np.bincount(known[~np.isnan(known)].astype(np.int64), minlength=len(names))
    if given == (BALANCED,):
        weights = 1.0 / np.maximum(counts, 1)
    else:
        weights = np.ones(len(names))
        for text in given:
            name, weight = _parsed(text)
            if name not in names:
                raise TrainingError(
                    f"class_weights names {shown(name)}, which is no class"
                    f"{suggestion(name, names)}; classes are {listed(names)}"
                )
            weights[names.index(name)] = weight
    mean = float(weights @ counts) / max(int(counts.sum()), 1)
    return tuple((weights / mean if mean > 0 else np.ones(len(names))).tolist())


def _parsed(text: str) -> tuple[str, float]:
    name, equals, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not equals or not 0 < weight <= _MAX_WEIGHT:
        raise TrainingError(
            f"class_weights holds {shown(text)}; write balanced, or NAME=WEIGHT with a weight "
            f"above 0, at most {_MAX_WEIGHT:g}"
        )
    return name.strip(), weight
