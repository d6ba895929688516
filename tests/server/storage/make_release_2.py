"""Make `tests/server/storage/release_2`, what a crash has left of a server of the release before.

Run once, with that release: ``python -m tests.server.storage.make_release_2``. `MODELS`, `INPUTS`
and what each stream has done are stated here for the test that goes on with them. Its journal has
steps that no record has.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from streamrnn_client import Client
from streamrnn_server.testing import serving
from tests.support.models import random_model

__all__ = ["DIRECTORY", "INPUTS", "MODELS", "NUM_RECORDED", "NUM_STEPS", "STREAMS"]

DIRECTORY = Path(__file__).with_name("release_2")
NUM_RECORDED, NUM_STEPS = 5, 11  # in the records, and in all
_RNG = np.random.default_rng(41)
MODELS = {
    "lstm": random_model(_RNG, [("lstm", 3)], 2, 2),
    "gru": random_model(_RNG, [("gru", 4), ("rnn_tanh", 3)], 2, 1),
}
# Of a model, with a window.
STREAMS: dict[str | int, tuple[str, int]] = {
    "wide": ("lstm", 4),
    "narrow": ("gru", 1),
    7: ("gru", 16),
}
INPUTS = _RNG.standard_normal((3 * NUM_STEPS, 2)).astype(np.float32)


def main() -> None:
    """Step streams in two shards, and copy what is on disk then."""
    with tempfile.TemporaryDirectory() as name:
        state = Path(name) / "state"
        options = {"state_dir": state, "durability": "always", "max_state_bytes": 2**20}
        options |= {"num_shards": 2, "checkpoint_interval_s": 3600.0}
        with serving(MODELS, **options) as server, Client(server.endpoints[0]) as client:
            opened = [
                client.stream(key, model, window=window) for key, (model, window) in STREAMS.items()
            ]
            unnumbered = client.stream("unnumbered", "lstm", numbered=False)
            closed = client.stream("closed", "lstm")
            for k in range(NUM_STEPS):
                if k == NUM_RECORDED:
                    assert client.sync()
                    opened[0].snapshot("here")
                for stream in (*opened, unnumbered):
                    stream.step(INPUTS[k])
                closed.step(INPUTS[k])
            closed.close()
            late = client.stream("late", "gru")  # it is in the journal alone
            for k in range(NUM_STEPS):
                late.step(INPUTS[k])
            shutil.copytree(state, DIRECTORY)
    for path in (*DIRECTORY.glob("*lock*"), DIRECTORY / "journal" / "reserve"):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
