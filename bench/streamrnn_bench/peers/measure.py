"""``streamrnn bench peers``: our server beside servers that others would write or pick.

The same network, one step a message, over tcp on loopback; each stream sends its next step when it
has the reply to the one before. All servers run, and take turns; those that wait, wait for a
message. Every server's outputs of the first steps of all streams are compared with the float64
reference before anything is timed, so that a state that is not carried is found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.model import Model
from streamrnn.reference.model import ReferenceModel
from streamrnn_bench.peers.contenders import (
    CONTENDERS,
    OURS,
    Contender,
    Place,
    peers_python,
    peers_versions,
)
from streamrnn_bench.report.machine_load import MachineLoad, quieter_half
from streamrnn_bench.report.results import BenchError, Result
from streamrnn_bench.server.load import NUM_X, make_traffic
from streamrnn_bench.server.processes import Load, stopping_cleanly, temporary_model
from streamrnn_bench.step.cases import Case

__all__ = ["NUM_STREAMS", "check_steps", "chosen", "measure_served_peers"]

NUM_STREAMS = (1, 64, 1000)
TOLERANCE = 5e-6  # of float32 against float64, outputs of order 1
_CASE = Case("lstm", 64, 128)
_NUM_CHECKED_STEPS = 6
_MAX_ROUND_TRIPS = 1_000_000
_WARM_UP_S = 0.2

Found = dict[str, Any]


def check_steps(name: str, model: Model, outputs: NDArray[np.float32]) -> float:
    """Compare outputs [T, N, H] of new streams with the float64 reference; return the error.

    Inputs are those of `Traffic`. Raises a `BenchError` if the error is above `TOLERANCE`.
    """
    num_steps, num_streams, hidden_size = outputs.shape
    reference = ReferenceModel(model)
    x = make_traffic(0, 1, model.spec.num_inputs, hidden_size).x
    state = reference.initial_state(num_streams)
    largest = 0.0
    for step in range(num_steps):
        expected, state = reference.step(
            state, x[(np.arange(num_streams) + 7 * (step + 1)) % NUM_X]
        )
        error = float(np.max(np.abs(outputs[step] - expected)))
        if not error <= TOLERANCE:
            raise BenchError(
                f"{name}: step {step + 1} of {num_streams} streams is off by {error:g} from the "
                f"float64 reference, more than {TOLERANCE:g}; a wrong result is not timed"
            )
        largest = max(largest, error)
    return largest


def chosen(names: Sequence[str], versions: Mapping[str, str]) -> list[Contender]:
    """Return the contenders whose names begin so, or all that are installed.

    Raises a `BenchError` if there is none of a name, or its packages are missing.
    """
    found = []
    for name in names or ("",):
        of_name = [
            each
            for each in CONTENDERS
            if each.name.startswith(name) and (name or not each.by_name_only)
        ]
        if not of_name:
            known = ", ".join(f"'{each.name}'" for each in CONTENDERS)
            raise BenchError(f"there is no peer {name!r}; peers are {known}")
        found += of_name
    usable = [each for each in found if versions.keys() >= set(each.packages)]
    if len(usable) < len(found) and (names or not usable):
        missing = sorted({p for each in found for p in each.packages} - versions.keys())
        raise BenchError(f"not installed: {', '.join(missing)}; `make peers` installs them")
    return usable


def measure_served_peers(
    case: Case = _CASE,
    names: Sequence[str] = (),
    streams: Sequence[int] = NUM_STREAMS,
    num_rounds: int = 6,
    round_s: float = 0.4,
    python: Path | None = None,
) -> Iterator[Result]:
    """Measure steps a second with so many streams, and the p50 of one, against every peer's.

    Medians of the quieter half of ``num_rounds`` turns of ``round_s``. ``python`` has the peers'
    packages. Raises a `BenchError` as `chosen` and `check_steps` do, or if a reply is missing.
    """
    if case.cell != "lstm":
        raise BenchError(f"case '{case}': the peers are compared for lstm only")
    python = peers_python(python)
    versions = peers_versions(python)
    contenders = [OURS, *chosen(names, versions)]
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    model = case.model()
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping_cleanly())
        path = stack.enter_context(temporary_model(case))
        # Every number of streams has streams of its own: a state that was checked is used up.
        place = Place(case, path, python, sum(streams))
        place.write_weights(model)
        endpoints = [stack.enter_context(each.start(place)) for each in contenders]
        for first, num_streams in zip(np.cumsum([0, *streams]), streams, strict=False):
            yield from _measure(
                contenders, endpoints, place, model, (int(first), num_streams), num_rounds, round_s
            )


def _measure(
    contenders: Sequence[Contender],
    endpoints: Sequence[str],
    place: Place,
    model: Model,
    streams: tuple[int, int],
    num_rounds: int,
    round_s: float,
) -> Iterator[Result]:
    """Measure one number of streams (the first one's number, and how many they are)."""
    num_streams = streams[1]
    command: Found = {"drive_s": round_s}
    if num_streams == 1:
        command["num_round_trips"] = _MAX_ROUND_TRIPS
    with contextlib.ExitStack() as stack:
        loads = {
            each.name: stack.enter_context(each.drive(endpoint, place, streams))
            for each, endpoint in zip(contenders, endpoints, strict=True)
        }
        errors = {e.name: _checked(e, loads[e.name], place, model) for e in contenders}
        for each in loads.values():
            each.ask(drive_s=_WARM_UP_S)
        machine_load = MachineLoad()
        rounds: list[tuple[float, dict[str, Found]]] = []
        for _ in range(num_rounds):
            found = {name: each.ask(**command) for name, each in loads.items()}
            rounds.append((machine_load.share(), found))
    share, quiet = quieter_half(rounds)
    for peer in contenders[1:]:
        yield _result(place.case, peer, num_streams, quiet, share, errors)


def _checked(contender: Contender, load: Load, place: Place, model: Model) -> float:
    path = place.model.with_name("outputs.npy")
    load.ask(keep=str(path), num_steps=_NUM_CHECKED_STEPS)
    outputs = np.load(path)
    return check_steps(contender.name, model, outputs) if contender.computes else 0.0


def _result(
    case: Case,
    peer: Contender,
    num_streams: int,
    rounds: Sequence[dict[str, Found]],
    share: float,
    errors: Mapping[str, float],
) -> Result:
    is_single = num_streams == 1
    what = "p50" if is_single else f"{num_streams} streams"
    ours, theirs = (
        [each[name]["p50_us"] if is_single else _rate(each[name]) for each in rounds]
        for name in (OURS.name, peer.name)
    )
    client_us = [
        median(1e6 * each[name]["processor_s"] / each[name]["num_replies"] for each in rounds)
        for name in (OURS.name, peer.name)
    ]
    off = f"off by {errors[peer.name]:.1g} (ours {errors[OURS.name]:.1g})"
    details: Found = {
        "streams": num_streams,
        "client_us": client_us[0],
        "reference_client_us": client_us[1],
        "error": errors[OURS.name],
        "reference_error": errors[peer.name],
    }
    if is_single:
        pairs = {"latency_us": OURS.name, "reference_latency_us": peer.name}
        details |= {key: _latency([each[name] for each in rounds]) for key, name in pairs.items()}
    details |= {"series": OURS.name, "reference_series": peer.name}
    return Result(
        benchmark="peers",
        case=f"{case} {what}, {peer.name}",
        value=median(ours),
        unit="us" if is_single else "steps/s",
        reference=peer.name,
        reference_value=median(theirs),
        target=peer.p50_target if is_single else peer.targets.get(num_streams),
        note=f"client {client_us[0]:.2f} and {client_us[1]:.2f} us a step; "
        f"{off if peer.computes else 'computes nothing'}; others took up to {share:.0%}",
        samples=tuple(ours),
        reference_samples=tuple(theirs),
        details=details,
    )


def _rate(found: Found) -> float:
    return float(found["num_replies"] / found["elapsed_s"])


def _latency(rounds: Sequence[Found]) -> dict[str, float]:
    return {q: median(each[f"p{q}_us"] for each in rounds) for q in ("50", "99", "99.9")}
