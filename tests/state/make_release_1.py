"""Make `tests/state/release_1`, the state of the release before records had version 2.

Run once, with that release: ``python -m tests.state.make_release_1``. `MODEL`, `INPUTS` and what
each stream has done are stated here for the test that goes on with them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamrnn_client import Client
from streamrnn_server.testing import serving
from tests.support.models import random_model

__all__ = ["DIRECTORY", "INPUTS", "MODEL", "NUM_STEPS"]

DIRECTORY = Path(__file__).with_name("release_1")
NUM_STEPS = 11
MODEL = random_model(np.random.default_rng(31), [("lstm", 3)], 2, 2)
INPUTS = np.random.default_rng(32).standard_normal((2 * NUM_STEPS, 2)).astype(np.float32)


def main() -> None:
    """Step four streams, and leave a directory and an exported record behind."""
    options = {"state_dir": DIRECTORY, "durability": "always", "max_state_bytes": 2**20}
    with serving({"m": MODEL}, **options) as server, Client(server.endpoints[0]) as client:
        for name, window in (("wide", 4), ("narrow", 1)):
            stream = client.stream(name, window=window)
            for x in INPUTS[:NUM_STEPS]:
                stream.step(x)
        client.stream("wide").snapshot("here")
        client.stream(7, window=2)  # open, and not stepped
        unnumbered = client.stream("unnumbered", numbered=False)
        for x in INPUTS[:NUM_STEPS]:
            unnumbered.step(x)
        (DIRECTORY / "wide.srnn").write_bytes(client.stream("wide").export())


if __name__ == "__main__":
    main()
