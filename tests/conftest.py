"""What every test shares."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from streamrnn_bench.child_process import start_child

ROOT = Path(__file__).parents[1]
# Marks of tests that run only where -m names them.
ON_DEMAND = ("gpu", "soak")
# What tests run that takes a minute to compile where the cache is empty. Those that run nothing of
# it come first and those of the shard last, so that no worker has to wait for long.
COMPILED = {
    "engine": re.compile(
        "tests/(cuda|exporters|importers|kernels)/"
        "|tests/(bench/peers/test_peers|bench/test_step|engine/test_batch|model/test_(inspect|scales))"
        "|tests/training/((fit|memory|run|search|text)/|test_api|network/test_(dropout|feedback))"
        "|tests/training/baselines/test_(compare|evaluate)"
        "|tests/training/data/test_(categories|forecasts|leading_gaps|origin)"
    ),
    "shard": re.compile(
        "tests/(bench|engine|faults|fuzz|monitor|process|security|server|shard)/|tests/client/real_server/"
        "|tests/live/|tests/(project/test_examples|simulation/test_crash|training/test_commands)"
        "|tests/state/test_(leftovers|release_1|replay)|tests/vectors/test_server"
    ),
}
# Files that are there anyway.
LOCKS = {
    "engine": ROOT / "streamrnn" / "engine" / "__init__.py",
    "shard": ROOT / "server" / "streamrnn_server" / "shard" / "__init__.py",
}
EXCLUSIVE_NOW = fcntl.LOCK_EX | fcntl.LOCK_NB
compilers_key = pytest.StashKey[list[subprocess.Popen[Any]]]()

# A test's first example may wait for a compilation, and no test gates on time.
settings.register_profile("streamrnn", deadline=None, print_blob=True)
settings.load_profile("streamrnn")


def pytest_configure(config: pytest.Config) -> None:
    # A shell's background job ignores Ctrl-C, and nohup's a lost terminal; so would the programs
    # that tests signal.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Numba reads this when it is imported: without a GPU its kernels run in the simulator.
    if config.getoption("markexpr") != "gpu":
        os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = set(re.findall(r"\w+", config.getoption("markexpr")))
    for mark in ON_DEMAND:
        if mark not in named:
            config.hook.pytest_deselected(items=[i for i in items if i.get_closest_marker(mark)])
            items[:] = [item for item in items if not item.get_closest_marker(mark)]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = [None, *COMPILED]
    items.sort(key=lambda item: (order.index(compiled_part(item)), item.path not in slow))


def compiled_part(item: pytest.Item) -> str | None:
    """Return what of the machine code a test runs."""
    return next((part for part, tests in COMPILED.items() if tests.match(item.nodeid)), None)


@contextlib.contextmanager
def locked(part: str, kind: int) -> Iterator[int]:
    """Hold the lock of one part of the machine code."""
    with LOCKS[part].open() as file:
        fcntl.flock(file, kind)
        yield file.fileno()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to compile for all workers, in processes of their own that hold the locks meanwhile."""
    compilers = session.config.stash.setdefault(compilers_key, [])
    if os.environ.get("PYTEST_XDIST_WORKER") != "gw0":
        return
    wanted = {compiled_part(item) for item in session.items}
    for part in COMPILED:
        if part in wanted:
            # Another run may be at it.
            with contextlib.suppress(BlockingIOError), locked(part, EXCLUSIVE_NOW) as lock:
                command = [sys.executable, "-m", "tests.support.compile", part]
                options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
                compilers.append(start_child(command, pass_fds=[lock], **options))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for the compiler, which every worker would otherwise run for itself.

    The time that a test may take begins after that.
    """
    part = compiled_part(item)
    if part is not None:
        with locked(part, fcntl.LOCK_SH):
            pass
    return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    for compiler in config.stash.get(compilers_key, []):
        compiler.kill()
        compiler.wait()


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20260101)
