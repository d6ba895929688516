"""Crashes of server and client at points that a seed chooses.

The server's part is its own machine code, linked to a simulated libzmq, so it runs in processes of
its own (`tests.simulation.client_life`).
"""

from __future__ import annotations

import collections
import json
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.slow

NUM_SEEDS, NUM_PROCESSES = 40, 2


CLIENT, SWAPS = "tests.simulation.client_life", "tests.simulation.swap_life"


def tell(
    first: int, last: int, *options: str, life: str = CLIENT
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", life, str(first), str(last), *options]
    return subprocess.run(command, capture_output=True, text=True)


def run_stories(
    first: int, num_seeds: int, *options: str, life: str = CLIENT
) -> collections.Counter[str]:
    """Run stories in several processes; return what happened in all of them."""
    ends = [first + num_seeds * k // NUM_PROCESSES for k in range(NUM_PROCESSES + 1)]
    with ThreadPoolExecutor(NUM_PROCESSES) as pool:
        parts = pool.map(
            lambda k: tell(ends[k], ends[k + 1], *options, life=life), range(NUM_PROCESSES)
        )
    happened: collections.Counter[str] = collections.Counter()
    for part in parts:
        assert part.returncode == 0, part.stderr  # its last line names the seed
        happened.update(json.loads(part.stdout))
    return happened


def test_crashes_change_nothing():
    happened = run_stories(0, NUM_SEEDS)
    # It is a test only if all of it happens.
    for what, at_least in {
        "answers": 50,
        "client kills": 3,
        "crashes": 4,
        "torn turns": 1,
        "clean stops": 1,
        "broken starts": 0.2,
        "groups": 10,
        "branches": 1,
        "num_checkpoints": 20,
        "num_checkpoints_failed": 1,
        "num_duplicates": 10,
        "num_restored": 5,
        "rewinds": 0.1,
        "rollbacks": 0.1,
        "closed": 1,
        "conflicts": 1,
        "num_spilled_for_room": 0.1,
        "num_spilled_idle": 0.1,
    }.items():
        assert happened[what] > at_least * NUM_SEEDS, (what, happened)


def test_swaps_between_crashes_change_nothing():
    happened = run_stories(0, NUM_SEEDS, life=SWAPS)
    for what, at_least in {
        "answers": 50,
        "crashes": 2,
        "torn turns": 0.5,
        "swaps done": 5,
        "swaps seen": 2,
        "num_swapped": 2,
    }.items():
        assert happened[what] > at_least * NUM_SEEDS, (what, happened)


# A hundred stories, of which one of the first meets the fault.
@pytest.mark.parametrize(
    ("broken", "first"), [("rule-before-streams", 60), ("repeats-not-told", 1)]
)
def test_faults_planted_in_swaps_are_detected(broken, first):
    run = tell(first, first + 99, "--break", broken, life=SWAPS)
    assert run.returncode == 1
    assert "of neither version" in run.stderr, run.stderr


@pytest.mark.soak
def test_many_swaps_between_crashes_change_nothing():
    seed = random.SystemRandom().randrange(2**31)
    print(f"seeds from {seed} on")
    run_stories(seed, 5_000, "--actions", "120", life=SWAPS)


@pytest.mark.soak
def test_many_crashes_change_nothing():
    seed = random.SystemRandom().randrange(2**31)
    print(f"seeds from {seed} on")
    run_stories(seed, 20_000, "--actions", "80")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("disk-told-too-early", "BrokenPromise"),
        ("disk-forgets-a-step", "differs at step|StateLost"),
        ("disk-flips-a-bit", "differs at step"),
        ("client-replays-other-inputs", "differs at step"),
        ("client-forgets-too-early", "StateLost"),
        # A client that was killed has forgotten the answer, and is told that its state is lost.
        ("journal-dropped-too-early", "BrokenPromise|StateLost"),
        ("journal-told-too-early", "BrokenPromise|StateLost"),
        ("journal-without-incarnations", "journal is damaged|BrokenPromise|StateLost"),
    ],
)
def test_planted_faults_are_detected(broken, words):
    run = tell(1, 100, "--break", broken)  # the seeds whose disk is simulated
    assert run.returncode == 1
    assert re.search(words, run.stderr), run.stderr
    assert "python -m tests.simulation.client_life" in run.stderr.splitlines()[-1]
