"""Diagnostics: what the networks of a few recorded streams do, measured in a thread of its own.

Shards record (`shard.recorder`), `streamrnn.training.memory.recording` measures. Measuring may take
a small part of one processor, so it waits many times as long as it has worked. A shadow run
(`live.shadow`) gets its recordings from here.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamrnn_server.control.about.stats import ShardView
from streamrnn_server.control.error_text import stream_of
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.shadow import Shadow
from streamrnn_server.live.table import ModelTable
from streamrnn_server.shard.memory.recording import (
    FOR_SHADOW,
    Recorder,
    RecordingEnd,
    RecordingState,
)
from streamrnn_server.worker import OnFailure, Worker

__all__ = ["NO_RECORDINGS", "Diagnostics"]

NO_RECORDINGS = (
    "the server records no streams; start it with --diagnostics-streams, and let the CPU compute"
)
LEAST_STEPS = 16  # of a recording that is measured
_LOOK_EVERY_S = 1.0
_WAIT_TIMES = 250  # the time that measuring has taken
_MOST_S = 600.0  # that one stream is recorded
_MAX_RESULTS = 256
_NUM_AVERAGED = 8  # recordings of a model

_Key = tuple[int, int, int]  # shard, slot, generation


@dataclass
class _Seen:
    """What was seen of a recording when it was last looked at."""

    serial: int
    began_s: float
    num_steps: int = 0
    num_measured: int = 0


class Diagnostics:
    """Looks at recordings from `start` until `stop`, and keeps what came of the last ones.

    Parameters
    ----------
    table : ModelTable
        Its models, as shards number them.
    shards : sequence of ShardView
        May be filled later.
    log : EventLog
        Told of faults, which end nothing.

    Attributes
    ----------
    worker : Worker
    shadow : Shadow
    """

    def __init__(self, table: ModelTable, shards: Sequence[ShardView], log: EventLog) -> None:
        # Not at the top: a server without diagnostics does not need it. And not later: once it
        # serves, there may be no file left for an import.
        from streamrnn.training.memory.recording import measure_recording

        self._measure_recording = measure_recording
        self._models, self._shards, self._log = table.named, shards, log
        self.shadow = Shadow(table, shards, log)
        self.worker = Worker("diagnostics", self._run, patience_s=math.inf)
        self._end = threading.Event()
        self._lock = threading.Lock()  # around what `look` writes and others read
        self._seen: dict[tuple[int, int], _Seen] = {}
        self._results: OrderedDict[_Key, dict[str, Any]] = OrderedDict()
        self._last: dict[str, deque[dict[str, Any]]] = {}
        self._num_measured: Counter[str] = Counter()
        self._measure_at_s = 0.0

    def start(self, on_failure: OnFailure) -> None:
        """Begin to look."""
        self.worker.start(on_failure)
        self.shadow.worker.start(on_failure)

    def stop(self) -> None:
        """End; what is being measured is finished."""
        self._end.set()
        self.shadow.stop()
        self.worker.join()

    def _run(self) -> None:
        while not self._end.wait(_LOOK_EVERY_S):
            try:
                self.look()
            except Exception as error:  # whatever it is, streams are served without it
                self._log.write_fault("a recording could not be measured", error)

    def look(self) -> None:
        """Look at all recordings; measure what has come, if it is time to."""
        self.shadow.begin_round()
        try:
            for number, shard in enumerate(self._shards):
                for place in range(len(shard.recorder.table)):
                    self._look_at(number, shard.recorder, place)
        finally:
            wanted = self.shadow.end_round()
            for shard in self._shards:
                shard.recorder.want(wanted)
                shard.recorder.order()

    def _look_at(self, shard: int, recorder: Recorder, place: int) -> None:
        entry, now_s = recorder.table[place], time.monotonic()
        state, serial, num_steps = (int(entry[name]) for name in ("state", "serial", "num_steps"))
        if state == RecordingState.EMPTY:
            return
        seen = self._seen.get((shard, place))
        if seen is None or seen.serial != serial:
            seen = self._seen[shard, place] = _Seen(serial, now_s)
        has_ended = state == RecordingState.ENDED
        can_go = self.shadow.look(recorder, place, serial, seen.num_steps)
        # Nobody has asked for its measuring, and a shadow run needs places: it waits for neither.
        is_spare = int(entry["asker"]) == FOR_SHADOW
        is_spare |= self.shadow.is_recording and not entry["is_asked"]
        # Of one that is going only what was there before: the newest may still be on its way here.
        usable = seen.num_steps
        if has_ended:
            usable = num_steps - (int(entry["ended_as"]) == RecordingEnd.QUARANTINED)
        is_enough = usable >= max(LEAST_STEPS, 1 if has_ended else 2 * seen.num_measured)
        if is_enough and usable > seen.num_measured:
            if now_s >= self._measure_at_s:
                seen.num_measured = usable
                self._measure(shard, recorder, place, serial, usable)
            elif not is_spare:
                return
        seen.num_steps = num_steps
        if has_ended and can_go:
            entry["state"] = RecordingState.EMPTY
        elif not has_ended and now_s - seen.began_s > _MOST_S:
            entry["is_unwanted"] = 1

    def _measure(
        self, shard: int, recorder: Recorder, place: int, serial: int, num_steps: int
    ) -> None:
        entry = recorder.table[place].copy()
        row = recorder.part(int(entry["row"]), int(entry["row_bytes"]))
        x = recorder.part(int(entry["inputs"]), num_steps * int(entry["step_bytes"]))
        if int(entry["serial"]) != serial or int(recorder.table[place]["serial"]) != serial:
            return  # meanwhile it has become another one
        stream = stream_of(entry["id"][: int(entry["id_bytes"])].tobytes())
        name, model = self._models[int(entry["model"])]
        first_seq, began_s = int(entry["first_seq"]), time.perf_counter()
        inputs = np.frombuffer(x, "<u4" if model.spec.is_token else "<f4")
        inputs = inputs.reshape(num_steps, -1)
        try:
            past = first_seq or None
            facts = self._measure_recording(model, np.frombuffer(row, "<f4"), inputs, past)
        finally:
            now_s = time.monotonic()
            self._measure_at_s = now_s + _WAIT_TIMES * (time.perf_counter() - began_s)
        result = {"stream": stream, "model": name, "shard": shard, "first_seq": first_seq}
        result |= facts | {"ended": _why(int(entry["ended_as"])), "measured_s": now_s}
        key = (shard, int(entry["slot"]), int(entry["generation"]))
        with self._lock:
            self._num_measured[name] += 1
            self._results[key] = result
            self._results.move_to_end(key)
            if len(self._results) > _MAX_RESULTS:
                self._results.popitem(last=False)
            self._last.setdefault(name, deque(maxlen=_NUM_AVERAGED)).append(result)

    def of_stream(self, shard: int, slot: int, generation: int, number: int) -> dict[str, Any]:
        """Return what is known of a stream; ``number`` is its recording's, 0 if there is none."""
        found: dict[str, Any] = {"is_recorded": number > 0, "num_recorded": 0, "measured": None}
        if number > 0:
            entry = self._shards[shard].recorder.table[number - 1]
            if (int(entry["slot"]), int(entry["generation"])) == (slot, generation):
                found["num_recorded"] = int(entry["num_steps"])
        with self._lock:
            result = self._results.get((shard, slot, generation))
        return found | ({} if result is None else {"measured": _told(result)})

    def streams(self) -> list[dict[str, Any]]:
        """Return what was measured last of each of the last streams, the newest first."""
        with self._lock:
            results = list(self._results.values())[-_NUM_AVERAGED:]
        return [_told(result) for result in reversed(results)]

    def by_model(self) -> dict[str, dict[str, Any]]:
        """Return the means of the last recordings, by model; those that were measured."""
        with self._lock:
            last = {name: list(results) for name, results in self._last.items()}
            numbers = dict(self._num_measured)
        return {name: _mean(results, numbers[name]) for name, results in last.items()}


def _why(end: int) -> str | None:
    return None if end == RecordingEnd.NONE else RecordingEnd(end).name.lower()


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result with its age in place of its time."""
    age_s = time.monotonic() - result["measured_s"]
    return {name: value for name, value in result.items() if name != "measured_s"} | {
        "age_s": age_s
    }


def _mean(results: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
    """Return what a model's streams have in common: means, and the worst of their warm-ups."""
    layers = []
    for same in zip(*(result["layers"] for result in results), strict=False):
        lives = [each["half_life"]["median"] for each in same if each["half_life"]]
        shares = [share for each in same for share in each["saturated"].values()]
        layers.append(
            {
                "layer": same[0]["layer"],
                "cell": same[0]["cell"],
                "half_life_steps": _median(lives),
                "saturated": float(np.mean(shares)) if shares else None,
                "dead": float(np.mean([each["num_dead"] for each in same])),
                "rms": {
                    name: float(np.mean([each["rms"][name] for each in same]))
                    for name in same[0]["rms"]
                },
            }
        )
    warmups = [result["warmup"] for result in results if result["warmup"]["holds"] is not None]
    drifts = [result["inputs"]["beyond"] for result in results if result["inputs"] is not None]
    worst = max(warmups, key=lambda each: each["distance"] or math.inf, default=None)
    return {
        "num_measured": number,
        "num_steps": sum(result["num_steps"] for result in results),
        "layers": layers,
        "beyond": float(np.mean(drifts)) if drifts else None,
        "warmup": worst,
    }


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median; None for an infinite one, or of nothing."""
    if not values:
        return None
    found = float(np.median([math.inf if value is None else value for value in values]))
    return found if math.isfinite(found) else None
