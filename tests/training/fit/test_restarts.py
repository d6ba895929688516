"""Rows of a batch that begin anew in the middle of a series."""

from typing import Any

import numpy as np
import pytest

from streamrnn.training import TrainingConfig
from streamrnn.training.data.dataset import make_dataset
from streamrnn.training.data.reading.read import read_table
from streamrnn.training.fit.augment import restarts
from streamrnn.training.fit.augment.restarts import restart_some
from streamrnn.training.fit.chunks import Piece, Segment
from streamrnn.training.fit.loop import fit
from tests.support.tables import noisy_sine, write_csv

# Two streams of four segments each.
SEGMENTS = [Segment(k // 4, 9 * (k % 4), 9 * (k % 4) + 9, k - 1 if k % 4 else -1) for k in range(8)]


def restarted(seed: int, num_updates: int, start: int = 3) -> Any:
    """Return which rows begin anew, of all layers and parts of the state alike."""
    state = [(np.ones((8, 3)), np.ones((8, 3))), (np.ones((8, 2)),)]
    piece = Piece(np.arange(8), start, start + 3, False)
    restart_some(state, piece, SEGMENTS, seed, num_updates)
    rows = [values.any(axis=1) for layer in state for values in layer]
    assert all((each == rows[0]).all() for each in rows)
    return ~rows[0]


def test_some_rows_begin_anew_but_none_of_a_streams_first_segment():
    counts = sum(restarted(0, k).astype(int) for k in range(6400))
    assert not counts[[0, 4]].any()
    later = counts[[1, 2, 3, 5, 6, 7]]
    assert (abs(later - 100) < 50).all()  # 5 standard deviations


def test_what_is_drawn_depends_on_the_seed_and_the_place_alone():
    drawn = [[restarted(seed, k).tolist() for k in range(200)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != [restarted(0, k, 6).tolist() for k in range(200)]


@pytest.mark.parametrize("groups", [1, 12])
def test_a_series_that_is_cut_is_trained_so_and_whole_streams_are_not(
    tmp_path, monkeypatch, groups
):
    y = noisy_sine(1200)
    names = np.repeat([f"s{k}" for k in range(groups)], 1200 // groups)
    path = write_csv(tmp_path, y=y, g=names)
    config = TrainingConfig(
        path=path, predict=("y",), inputs=("y",), group=("g",), layers=("gru:3",), epochs=3
    )
    dataset = make_dataset(config, read_table(path))
    found = []
    for share in (0.5, 0.0):
        monkeypatch.setattr(restarts, "SHARE", share)
        found.append(fit(dataset).network.flat.tobytes())
    assert (found[0] == found[1]) == (groups == 12)
