"""Compile the engine into the cache, in every precision."""

from __future__ import annotations

import numpy as np

from streamrnn import Engine
from streamrnn.kernels.precisions import PRECISIONS
from tests.support.models import random_inputs, random_model


def main() -> None:
    model = random_model(np.random.default_rng(0))
    x = random_inputs(np.random.default_rng(0), model.spec, 1, 2)[0]
    for precision in PRECISIONS:
        Engine(model, precision=precision).steps("a", x)


if __name__ == "__main__":
    main()
