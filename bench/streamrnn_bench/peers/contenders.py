"""Who is compared: a server, a client that drives it, and what the protocol alone would take."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import streamrnn_bench
from streamrnn.model.model import Model
from streamrnn_bench.child_process import start_child
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server.load import make_traffic
from streamrnn_bench.server.processes import Load, load, run_module, server, wait_for
from streamrnn_bench.step.cases import Case

__all__ = ["CONTENDERS", "OURS", "Contender", "Place", "peers_python", "peers_versions"]

_SERVERS = "streamrnn_bench.peers.servers"
_PACKAGES = (
    "torch",
    "onnxruntime",
    "onnx",
    "pyzmq",
    "msgpack",
    "grpcio",
    "nvidia-pytriton",
    "numpy",
)
# Over one connection; one call alone is up to four times as slow, unless its server batches.
_NUM_CALLS = 8
# The other Python finds its own packages first; of this one's it uses `streamrnn_bench` alone.
_RUN_MODULE = (
    "import sys, runpy; sys.path.append(sys.argv.pop(1)); del sys.argv[0]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)
_VERSIONS = (
    "import json, sys; from importlib.metadata import PackageNotFoundError, version\n"
    "found = {}\n"
    "for name in sys.argv[1:]:\n"
    "    try: found[name] = version(name)\n"
    "    except PackageNotFoundError: pass\n"
    "print(json.dumps(found))"
)


class Place(NamedTuple):
    """Where contenders run: a directory that holds model and weights, and the peers' Python."""

    case: Case
    model: Path
    python: Path
    max_streams: int

    @property
    def weights(self) -> Path:
        """The model's weights and the load's inputs ``x``, as npz."""
        return self.model.with_name("weights.npz")

    def write_weights(self, model: Model) -> None:
        """Write what servers and clients in the peers' Python read."""
        x = make_traffic(0, 1, self.case.input_size, self.case.hidden_size).x
        weights = {name.removesuffix("_l0"): array for name, array in model.parameters.items()}
        np.savez(self.weights, x=x, **weights)  # type: ignore[arg-type]

    @property
    def module_runner(self) -> tuple[str, ...]:
        """Command that runs a module of `streamrnn_bench` in the peers' Python."""
        root = Path(streamrnn_bench.__file__).parents[1]
        return (str(self.python), "-c", _RUN_MODULE, str(root))


Starts = Callable[[Place], contextlib.AbstractContextManager[str]]
Drives = Callable[[str, Place, tuple[int, int]], contextlib.AbstractContextManager[Load]]


@dataclass(frozen=True)
class Contender:
    """A server, which yields its endpoint, and a client that drives it.

    The client is given the number of its first stream, and how many they are.
    """

    name: str
    start: Starts
    drive: Drives
    packages: tuple[str, ...]  # that the peers' Python must have
    # How many times as many steps a second we want, by the number of streams; and of the p50.
    targets: dict[int, float]
    p50_target: float | None = None
    computes: bool = True
    by_name_only: bool = False


@contextlib.contextmanager
def _ours(place: Place) -> Iterator[str]:
    with server(place.model) as process:
        yield process.endpoint


def _compiled_load(
    endpoint: str, place: Place, streams: tuple[int, int]
) -> contextlib.AbstractContextManager[Load]:
    first, num_streams = streams
    return load(endpoint, place.case, num_streams, False, "--first", str(first))


def _python_server(module: str, *options: str) -> Starts:
    """Return how a server of `servers` is started."""

    @contextlib.contextmanager
    def start(place: Place) -> Iterator[str]:
        ready = place.model.with_name(f"{module}-{time.monotonic_ns()}.ready")
        arguments = (
            *("--weights", str(place.weights), "--ready-file", str(ready)),
            *("--max-streams", str(place.max_streams), *options),
        )
        of = {"python": place.module_runner}
        with run_module(f"{_SERVERS}.{module}", *arguments, **of) as process:
            yield wait_for(ready, process)

    return start


def _zmq(engine: str, batches: bool, targets: dict[int, float]) -> Contender:
    options = ("--engine", engine, *["--batch"] * batches)
    packages = {"pytorch": ("torch",), "onnxruntime": ("onnxruntime", "onnx")}.get(engine, ())
    return Contender(
        f"pyzmq + {engine}{', batches' * batches}",
        _python_server("zmq_server", *options),
        _compiled_load,
        ("pyzmq", "msgpack", *packages),
        targets,
        computes=engine != "nothing",
        by_name_only=engine == "numpy",
    )


def _grpc_load(protocol: str, num_calls: int) -> Drives:
    @contextlib.contextmanager
    def drive(endpoint: str, place: Place, streams: tuple[int, int]) -> Iterator[Load]:
        first, num_streams = streams
        with run_module(
            "streamrnn_bench.peers.grpc_load",
            *("--endpoint", endpoint, "--case", str(place.case), "--protocol", protocol),
            *("--first", str(first), "--num-streams", str(num_streams)),
            *("--calls", str(num_calls)),
        ) as process:
            yield Load(process)

    return drive


def _grpc(engine: str, batches: bool) -> Contender:
    options = ("--engine", engine, *["--batch"] * batches)
    packages = ("onnxruntime", "onnx") if engine == "onnxruntime" else ()
    return Contender(
        f"gRPC + {engine}{', batches' * batches}",
        _python_server("grpc_server", *options),
        _grpc_load("plain", 1 if batches else _NUM_CALLS),
        ("grpcio", *packages),
        {},
        computes=engine != "nothing",
    )


def _triton(batches: bool) -> Contender:
    return Contender(
        f"Triton{', batches' * batches}",
        _python_server("triton_server", "--engine", "onnxruntime", *["--batch"] * batches),
        _grpc_load("triton", _NUM_CALLS),
        ("nvidia-pytriton", "grpcio", "onnxruntime", "onnx"),
        dict.fromkeys((64, 1000), 60),
        p50_target=8,
    )


OURS = Contender("StreamRNN", _ours, _compiled_load, (), {})
CONTENDERS = (
    _zmq("pytorch", False, {64: 12, 1000: 20}),
    _zmq("pytorch", True, {64: 4, 1000: 4}),
    _zmq("onnxruntime", False, {64: 6, 1000: 15}),
    _zmq("onnxruntime", True, {64: 3, 1000: 3}),
    _zmq("nothing", False, {}),
    _grpc("onnxruntime", False),
    _grpc("onnxruntime", True),
    _grpc("nothing", False),
    _triton(False),
    _triton(True),
    _zmq("numpy", False, {}),
    _zmq("numpy", True, {}),
)


def peers_python(given: Path | None) -> Path:
    """Return the Python that the peers are installed in: given, of `make peers`, or this one."""
    made = Path("build/peers/bin/python")
    path = given or (made if made.exists() else Path(sys.executable))
    if not path.exists():
        raise BenchError(f"--peers-python: there is no {path}; `make peers` makes one")
    return path.absolute()


def peers_versions(python: Path) -> dict[str, str]:
    """Return the versions of the peers' packages that a Python has."""
    with start_child([str(python), "-c", _VERSIONS, *_PACKAGES], stdout=-1, text=True) as process:
        output, _ = process.communicate(timeout=60)
    if process.returncode:
        raise BenchError(f"{python} does not run: exit code {process.returncode}")
    found: dict[str, str] = json.loads(output)
    return found
