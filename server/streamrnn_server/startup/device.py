"""Which device serves: what was asked for, or what a short measurement finds faster."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from streamrnn.engine.engine import Engine
from streamrnn.errors import DeviceError, StartError
from streamrnn.kernels.cuda.compiler import require_gpu
from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn.model.model import Model
from streamrnn_server.config import ServerConfig
from streamrnn_server.event_log import EventLog

__all__ = ["choose_device", "steps_per_s"]

_MAX_STREAMS = 4096  # measured together
_MEASURE_S = 0.05
_MIN_ROUNDS = 3


def steps_per_s(model: Model, device: str, num_streams: int) -> float:
    """Measure how many steps a device computes when many streams step together.

    Returns
    -------
    float
        Of the best of a few rounds.

    Raises
    ------
    DeviceError
        If the device cannot be used.
    """
    engine = Engine(model, device, max_streams=num_streams)
    rows = engine.rows(range(num_streams))
    dtype = np.uint32 if model.spec.is_token else np.float32
    x = np.zeros((num_streams, model.spec.num_inputs), dtype)
    engine.batch(rows, x)
    best_s, num_rounds, end_s = np.inf, 0, time.perf_counter() + _MEASURE_S
    while num_rounds < _MIN_ROUNDS or time.perf_counter() < end_s:
        began_s = time.perf_counter()
        engine.batch(rows, x)
        best_s = min(best_s, time.perf_counter() - began_s)
        num_rounds += 1
    return float(num_streams / best_s)


def choose_device(models: Mapping[str, Model], config: ServerConfig, log: EventLog) -> str:
    """Return the device that is to serve, and say why in the log if nobody has chosen it.

    Returns
    -------
    str
        ``cpu`` or ``cuda``.

    Raises
    ------
    StartError
        If a GPU was asked for, and there is none that can be used.
    """
    device = _choose(models, config, log)
    if device == "cuda":
        try:
            require_gpu()
        except DeviceError as error:
            raise StartError(str(error)) from error
    return device


def _choose(models: Mapping[str, Model], config: ServerConfig, log: EventLog) -> str:
    if config.device != "auto":
        return config.device
    if config.precision != "float32":
        # Not the same thing on both: somebody who wants the GPU's bfloat16 says so.
        device = "cpu" if config.precision in DEVICE_PRECISIONS["cpu"] else "cuda"
        log.write("info", f"device {device}", why=f"its precision {config.precision} is asked for")
        return device
    num_streams = min(_MAX_STREAMS, config.max_streams_of_a_shard)
    times_s = {"cpu": 0.0, "cuda": 0.0}  # of one step of each model, on all shards
    for name, model in models.items():
        try:
            on_gpu = steps_per_s(model, "cuda", num_streams)
        except DeviceError as error:
            log.write("info", "device cpu", why=f"model {name!r}: {error}")
            return "cpu"
        times_s["cuda"] += 1 / on_gpu
        # Each shard has a thread; they share the GPU.
        times_s["cpu"] += 1 / (config.num_shards * steps_per_s(model, "cpu", num_streams))
    device = min(times_s, key=lambda name: times_s[name])  # the CPU, if they are equal
    log.write(
        "info",
        f"device {device}",
        why=f"{num_streams} streams together, steps a second: "
        f"{len(models) / times_s['cpu']:,.0f} on {config.num_shards} CPU threads, "
        f"{len(models) / times_s['cuda']:,.0f} on the GPU",
    )
    return device
