"""Shadow runs: how far a version's outputs would be from those of another, before anybody switches.

Shards record some streams of the old version (`shard.recorder`). A thread computes both versions
from there: the old one as it was served, to the bit; the new one with the stream's state, where
`carry` would be allowed, and from nothing, as `reset` would. Streams know nothing of it. It takes a
small part of one processor, for it rests many times as long as it has worked.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamrnn.model.spec import ModelSpec
from streamrnn_client.protocol import ErrorCode, ProtocolError
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.differences import Differences
from streamrnn_server.live.rerun import Rerun
from streamrnn_server.live.rules import can_carry, check_shadow
from streamrnn_server.live.table import ModelTable
from streamrnn_server.shard.memory.recording import (
    FOR_SHADOW,
    Recorder,
    RecordingState,
    most_steps,
)
from streamrnn_server.shard.model_memory import ModelMemory
from streamrnn_server.worker import Worker

__all__ = ["Shadow"]

_NUM_STREAMS, _MOST_S = 8, 60.0
_MAX_QUEUED = 4  # recordings that wait to be computed
_REST_TIMES = 24  # the time that computing has taken
_SLICE_STEPS, _SLICE_VALUES = 32, 2**18  # computed at once, at most


class _ShardView(Protocol):
    models: ModelMemory


class _Recorded(NamedTuple):
    """A piece of a stream."""

    row: bytes
    x: NDArray[Any]  # float32 or uint32, (T, num_inputs)


@dataclass
class _Run:
    """A shadow run that goes on."""

    asked: dict[str, Any]
    old: int  # index of the model
    specs: tuple[ModelSpec, ModelSpec]
    programs: tuple[Any, Any]
    num_streams: int
    max_steps: int
    seconds: float
    began_s: float
    carry: Differences | None
    reset: Differences
    warmup: Differences
    queue: deque[_Recorded] = field(default_factory=deque)
    taken: set[bytes] = field(default_factory=set)  # ids of streams
    is_recording: bool = True
    is_late: bool = False
    is_left: bool = False  # whether a recording found no place in the queue
    num_begun: int = 0  # streams that were compared, or are
    num_refused: int = 0  # of them those of which the new version refuses an input


class Shadow:
    """Makes one shadow run after the other, from `start` until `stop`.

    Parameters
    ----------
    table : ModelTable
    shards : sequence of views of shards
        May be filled later.
    log : EventLog
        Told of faults, which end a run and nothing else.

    Attributes
    ----------
    worker : Worker
    """

    def __init__(self, table: ModelTable, shards: Sequence[_ShardView], log: EventLog) -> None:
        self._table, self._shards, self._log = table, shards, log
        self.worker = Worker("shadow", self._work, patience_s=math.inf)
        self._lock = threading.Lock()  # around the run, which three threads look at
        self._run: _Run | None = None
        self._last: dict[str, Any] = {"state": None}  # what came of the one before
        self._wake = threading.Event()  # there may be something to compute
        self._hurry = threading.Event()  # rest no more
        self._is_ending = False

    def stop(self) -> None:
        """End; what is being computed is finished."""
        self._is_ending = True
        self._hurry.set()
        self._wake.set()
        self.worker.join()

    # ---- called by the thread that answers ------------------------------------------------------

    def call(
        self, name: str | None = None, to: str | None = None, stop: bool = False, **amounts: Any
    ) -> dict[str, Any]:
        """Begin a run, tell how far it is, or end it.

        Parameters
        ----------
        name, to : str or None
            The versions; without them the run that goes on, or was the last, is told. If just this
            is what goes on, it is told too.
        stop : bool
            Whether to end it.
        **amounts
            Perhaps ``streams``, ``steps`` (of each) and ``seconds`` (in which they are recorded).

        Returns
        -------
        dict
            As docs/live-models.md describes it.

        Raises
        ------
        ProtocolError
            If it cannot begin.
        """
        if (name is None) != (to is None) or (amounts and name is None):
            raise ProtocolError(
                ErrorCode.BAD_PARAMS,
                "shadow takes name and to, and perhaps streams, steps and seconds; or nothing, for "
                "what goes on; or stop",
            )
        with self._lock:
            if stop and self._run is not None:
                self._end(self._run, "stopped", "it was stopped")
            if name is not None and to is not None and not stop:
                self._begin(name, to, amounts)
            return self._last if self._run is None else self._tell(self._run)

    def _begin(self, name: str, to: str, amounts: dict[str, Any]) -> None:
        asked = {"name": name, "to": to, **amounts}
        if self._run is not None:
            if self._run.asked == asked:
                return
            going = self._run.asked
            text = f"a shadow run of {going['to']!r} beside {going['name']!r} goes on: wait for its"
            raise ProtocolError(ErrorCode.EXISTS, f"{text} end, or stop it")
        table, models = self._table, self._shards[0].models
        check_shadow(table, name, to)
        old, new = table.indices[name], table.indices[to]
        recorded = int(models.structs[old]["recorded_steps"])
        programs = models.program(old).for_shard(), models.program(new).for_shard()
        is_small = most_steps(programs[1].spec, programs[1].row_bytes) > 0
        for each, can_be in ((name, recorded > 0), (to, is_small)):
            if not can_be:
                raise ProtocolError(
                    ErrorCode.NOT_SUPPORTED,
                    f"{each!r} is too large for a shadow run: streams of models with so many "
                    "parameters, or so large a state or input, are not recorded",
                )
        steps = amounts.get("steps", recorded)
        if steps > recorded:
            raise ProtocolError(
                ErrorCode.BAD_PARAMS,
                f"steps is {steps}; of a stream of {name!r} at most {recorded} are recorded",
            )
        specs = programs[0].spec, programs[1].spec
        self._hurry.clear()
        self._run = _Run(
            asked,
            old,
            specs,
            programs,
            amounts.get("streams", _NUM_STREAMS),
            steps,
            amounts.get("seconds", _MOST_S),
            time.monotonic(),
            Differences(*specs) if can_carry(*specs) else None,
            Differences(*specs),
            Differences(*specs),
        )

    def _end(self, run: _Run, state: str, reason: str | None = None) -> None:
        """Keep what came of a run, and free all else."""
        self._last = self._tell(run) | {"state": state, "reason": reason}
        self._run = None
        self._hurry.set()
        self._wake.set()

    def _tell(self, run: _Run) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "state": "recording" if run.is_recording else "comparing",
            "reason": None,
            "name": run.asked["name"],
            "to": run.asked["to"],
            "streams": run.num_streams,
            "steps": run.max_steps,
            "seconds": run.seconds,
            "elapsed_s": time.monotonic() - run.began_s,
            "num_recorded": len(run.taken),
            "num_streams": run.num_begun,
            "num_refused": run.num_refused,
            "same_inputs": _described(run.specs[0]) == _described(run.specs[1]),
            "carry": None if run.carry is None else run.carry.facts(),
        }
        warmup = {"warmup_steps": run.specs[1].warmup_steps, "warmup": run.warmup.facts()}
        return facts | {"reset": run.reset.facts() | warmup}

    # ---- called by the thread that looks at recordings ------------------------------------------

    @property
    def is_recording(self) -> bool:
        """Whether recordings are wanted."""
        run = self._run
        return run is not None and run.is_recording

    def begin_round(self) -> None:
        """Note that `look` will be called of all recordings."""
        with self._lock:
            run = self._run
            if run is not None:
                run.is_late = time.monotonic() - run.began_s >= run.seconds
                run.is_left = False

    def look(self, recorder: Recorder, place: int, serial: int, num_known: int) -> bool:
        """Take what is needed of a recording; tell whether it can go.

        ``num_known`` is how many of its steps were there at the last look, when ``serial`` was its
        own: the shard may begin another one in the same place at any time.
        """
        entry = recorder.table[place]
        with self._lock:
            is_done, can_go = self._look_at(recorder, entry, serial, num_known)
        if is_done and int(entry["asker"]) == FOR_SHADOW:
            entry["is_unwanted"] = 1
        return can_go

    def _look_at(
        self, recorder: Recorder, entry: Any, serial: int, num_known: int
    ) -> tuple[bool, bool]:
        """Tell whether a recording is of no more use here, and whether it need not stay."""
        run = self._run
        if run is None or not run.is_recording or int(entry["model"]) != run.old:
            return True, True
        has_ended = int(entry["state"]) == RecordingState.ENDED
        stream = entry["id"][: int(entry["id_bytes"])].tobytes()
        if stream in run.taken:
            return True, True
        num_steps = min(int(entry["num_steps"]) if has_ended else num_known, run.max_steps)
        is_all = num_steps == run.max_steps or has_ended or run.is_late
        if num_steps == 0 or not is_all:
            return has_ended, True
        if len(run.queue) >= _MAX_QUEUED:
            run.is_left = True
            return False, not has_ended
        row = recorder.part(int(entry["row"]), int(entry["row_bytes"]))
        x = recorder.part(int(entry["inputs"]), num_steps * int(entry["step_bytes"]))
        if int(entry["serial"]) != serial:
            return False, True  # meanwhile it has become another one
        dtype = "<u4" if run.specs[0].is_token else "<f4"
        run.queue.append(_Recorded(row, np.frombuffer(x, dtype).reshape(num_steps, -1)))
        run.taken.add(stream)
        run.is_recording = len(run.taken) < run.num_streams
        self._wake.set()
        return True, True

    def end_round(self) -> int | None:
        """Note that all recordings were looked at; return the model whose streams are wanted."""
        with self._lock:
            run = self._run
            if run is None or not run.is_recording:
                return None
            if not run.is_late or run.is_left:
                return run.old
            run.is_recording = False
            self._wake.set()
            if not run.taken:
                name = run.asked["name"]
                self._end(
                    run,
                    "failed",
                    f"no stream of {name!r} was recorded in {run.seconds:g} s: none took a step, "
                    "or all places are taken by streams whose diagnostics users have asked for "
                    "(--diagnostics-streams)",
                )
            return None

    # ---- the thread that computes ---------------------------------------------------------------

    def _work(self) -> None:
        while not self._is_ending:
            self._wake.wait()
            self._wake.clear()
            run = self._run
            if run is None:
                continue
            try:
                self._compare_all(run)
            except Exception as error:  # whatever it is, streams are served without it
                self._log.write_fault("a shadow run failed", error)
                with self._lock:
                    if self._run is run:
                        self._end(
                            run, "failed", "the server failed by a fault of its own; see its log"
                        )

    def _compare_all(self, run: _Run) -> None:
        """Compare what is recorded; end a run of which no more will be."""
        while self._run is run and not self._is_ending:
            with self._lock:
                recorded = run.queue.popleft() if run.queue else None
                if recorded is None:
                    if not run.is_recording and self._run is run:
                        self._end(run, "done")
                    return
                run.num_begun += 1
            self._compare(run, recorded)

    def _compare(self, run: _Run, recorded: _Recorded) -> None:
        old = Rerun(run.programs[0], [recorded.row])
        new = Rerun(run.programs[1], [None] if run.carry is None else [None, recorded.row])
        x, other = recorded.x, _inputs_of(run.specs, recorded.x)
        num_steps, warmup = new.num_fitting(other), run.specs[1].warmup_steps
        with self._lock:
            run.num_refused += num_steps < len(x)
        values = max(run.specs[0].num_inputs, run.specs[0].output_size)
        length = max(1, min(_SLICE_STEPS, _SLICE_VALUES // values))
        for first in range(0, num_steps, length):
            began_s = time.perf_counter()
            part = slice(first, min(first + length, num_steps))
            [y], others = old.run(x[part]), new.run(other[part])
            left_out = min(max(warmup - first, 0), len(y))
            with self._lock:
                if self._run is not run or self._is_ending:
                    return
                if run.carry is not None:
                    run.carry.add(y, others[1])
                run.warmup.add(y[:left_out], others[0, :left_out])
                run.reset.add(y[left_out:], others[0, left_out:])
            self._hurry.wait(_REST_TIMES * (time.perf_counter() - began_s))


def _inputs_of(specs: tuple[ModelSpec, ModelSpec], x: NDArray[Any]) -> NDArray[Any]:
    """Return the inputs of the one model as the other takes them: less its own origins."""
    old, new = ([item.origin for item in each.input_elements] for each in specs)
    if old == new:
        return x
    moved: NDArray[Any] = (x.astype(np.float64) + np.subtract(old, new)).astype(np.float32)
    return moved


def _described(spec: ModelSpec) -> list[tuple[Any, ...]]:
    """Return what says which numbers a model's inputs are."""
    return [(item.name, item.unit, item.categories, item.shape) for item in spec.inputs]
