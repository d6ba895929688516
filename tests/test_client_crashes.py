"""Crashes of server and client at any point, by the seed: nothing lost, nothing applied twice."""

import pytest

from streamrnn_client import errors
from streamrnn_client._kept import Kept
from tests.crash_simulation import run_story
from tests.fake_server import FakeServer

NUM_SEEDS = 200


def run_stories(seeds, **options):
    return [run_story(seed, **options) for seed in seeds]


def test_crashes_change_nothing():
    stories = run_stories(range(NUM_SEEDS))
    # It is a test only if all of it happens.
    assert sum(story.sim.num_crashes for story in stories) > 10 * NUM_SEEDS
    assert sum(story.num_client_kills for story in stories) > NUM_SEEDS
    assert sum(story.num_rewinds for story in stories) > 10
    assert sum(story.num_answers for story in stories) > 100 * NUM_SEEDS
    assert sum(story.sim.num_commits for story in stories) > 10 * NUM_SEEDS


@pytest.mark.soak
def test_many_crashes_change_nothing():
    run_stories(range(NUM_SEEDS, 60 * NUM_SEEDS), num_actions=100)


def fails(monkeypatch, owner, name, broken):
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises((AssertionError, errors.StreamRNNClientError)) as caught:
        run_stories(range(NUM_SEEDS))
    assert "run_story(" in caught.value.__notes__[-1]


def test_it_would_notice_other_inputs_in_a_replay(monkeypatch):
    real = Kept.note

    def note(kept, first_seq, num_steps, x, applied):
        real(kept, first_seq, num_steps, None if x is None else x + 1, applied)

    fails(monkeypatch, Kept, "note", note)


def test_it_would_notice_what_is_forgotten_too_early(monkeypatch):
    real = Kept.forget
    fails(monkeypatch, Kept, "forget", lambda kept, seq: real(kept, seq + 1))


def test_it_would_notice_a_server_that_applies_a_step_twice(monkeypatch):
    fails(monkeypatch, FakeServer, "_from_ring", lambda *_: None)
