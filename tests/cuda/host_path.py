"""The host's part on the fake driver, which refuses what a real one would.

`tests.cuda.compiled` runs it. The driver's kernels add each step's first input to a stream's state,
and give that, plus 0, 1, 2, ..., as outputs: what comes out must be what went in, in its own stream
and step.
"""

from __future__ import annotations

import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from streamrnn import Engine
from streamrnn.engine import cuda as engine_cuda
from streamrnn.model.model import Model
from tests.support.models import random_model

Check = Callable[[], None]
CHECKS: dict[str, dict[str, Check]] = {"tiles": {}, "others": {}, "more": {}, "server": {}}
"""By the kernels that they run; those of the server for `tests/server`, whose machine code it is.

A model has a kernel of its own for chunks, so there are as few models as can be.
"""
NUM_INPUTS, NUM_OUTPUTS = 5, 3
STACK = (("lstm", 50), ("gru", 17))


def check(part: str) -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        CHECKS[part][function.__name__] = function
        return function

    return add


def model_of(layers: Any = STACK, head: str | None = "softmax") -> Model:
    rng = np.random.default_rng(0)
    return random_model(rng, layers=layers, inputs=NUM_INPUTS, outputs=NUM_OUTPUTS, head=head)


def engine_of(max_streams: int, model: Model | None = None, **options: Any) -> Any:
    return Engine(model or model_of(), device="cuda", max_streams=max_streams, **options)


def inputs(*shape: int) -> Any:
    return np.random.default_rng(1).integers(-9, 9, (*shape, NUM_INPUTS)).astype(np.float32)


def expected(x: Any) -> Any:
    return np.cumsum(x[..., :1], axis=-2) + np.arange(NUM_OUTPUTS)


@check("tiles")
def every_stream_has_its_own_outputs() -> None:
    engine = engine_of(300)
    assert engine._device.arithmetic == "cuda-float32-2"
    x, rows = inputs(300, 4), engine.rows(range(300))
    order = np.random.default_rng(2).permutation(300)
    for t in range(4):
        for batch in np.split(order, [1, 3, 120]):
            y = engine.batch(rows[batch], x[batch, t])
            np.testing.assert_array_equal(y, expected(x)[batch, t])


@check("tiles")
def a_call_of_many_batches_keeps_them_apart() -> None:
    """Two pairs of buffers, used again and again, each read when its batch has ended."""
    sizes: Any = {"_MAX_BUFFER_BYTES": 4 * 600, "_MIN_ROWS": 50, "_MAX_ROWS": 50}
    with mock.patch.multiple(engine_cuda, **sizes):
        engine = engine_of(300)
    x = inputs(300, 1)
    y = engine.batch(engine.rows(range(300)), x[:, 0])
    np.testing.assert_array_equal(y, expected(x)[:, 0])
    chunk = inputs(700)
    np.testing.assert_array_equal(engine.steps(0, chunk), expected(chunk) + x[0, 0, 0])


@check("tiles")
def chunks_of_models_of_any_size_share_a_kernel() -> None:
    """A small model that comes later takes nothing from the shared memory of a large one."""
    large, small = engine_of(8, model_of([("lstm", 512)])), engine_of(8)
    assert large._device.max_chunk_rows >= 1
    x = inputs(40)
    for stream, engine in enumerate((large, small, large)):
        np.testing.assert_array_equal(engine.steps(stream, x), expected(x))


@check("tiles")
def any_thread_may_step_export_and_import() -> None:
    engine = engine_of(8)
    x, errors = inputs(3, 6), []
    rows = engine.rows(range(3))
    np.testing.assert_array_equal(engine.batch(rows, x[:, 0]), expected(x)[:, 0])

    def step(stream: int) -> None:
        try:
            for t in range(1, 3):
                y = engine.batch(rows[[stream]], x[[stream], t])
                np.testing.assert_array_equal(y, expected(x)[[stream], t])
            record = engine.export_state(stream)
            engine.close(stream)
            engine.import_state(stream, record)
            np.testing.assert_array_equal(
                engine.steps(stream, x[stream, 3:]), expected(x)[stream, 3:]
            )
        except BaseException:
            errors.append(traceback.format_exc())

    for stream in range(3):  # a thread that CUDA has not seen before
        thread = threading.Thread(target=step, args=(stream,))
        thread.start()
        thread.join()
    assert not errors, errors[0]


@check("others")
def tensor_cores_name_their_architecture() -> None:
    names, model = {}, model_of([("lstm", NUM_OUTPUTS)], head=None)
    for precision in ("tf32", "bfloat16"):
        engine = engine_of(8, model, precision=precision)
        x = inputs(2, 3)
        for stream in range(2):
            np.testing.assert_array_equal(engine.steps(stream, x[stream]), expected(x)[stream])
        names[precision] = engine._device.arithmetic
    assert names == {"tf32": "cuda-sm90-tf32-2", "bfloat16": "cuda-sm90-bfloat16-2"}


@check("tiles")
def a_batch_may_have_more_rows_than_a_gpu_has_blocks_in_y() -> None:
    from streamrnn_bench.step.gpu_rates import ResidentStreams

    x = inputs(70_000, 1)
    resident = ResidentStreams(model_of(), x)
    resident.run(2)
    np.testing.assert_array_equal(resident.outputs(), expected(x) + x[:, :, :1])


@check("others")
def the_benchmark_s_limits_are_measured_on_random_numbers() -> None:
    from streamrnn_bench.step.gpu_rates import CopyRate, FmaRate

    rate, copies = FmaRate(), CopyRate(1 << 16)
    rate.run(2)
    copies.run(2)
    numbers = rate.numbers.copy_to_host()
    assert len(np.unique(numbers)) > 0.9 * len(numbers)
    copied = copies.target.copy_to_host()
    np.testing.assert_array_equal(copied, copies.source.copy_to_host())
    assert np.bincount(copied, minlength=256).min() > 0.7 * len(copied) / 256


@check("tiles")
def the_driver_refuses_what_the_hardware_does_not_take() -> None:
    from numba import cuda

    from streamrnn.kernels.cuda.compiler import gpu_errors
    from streamrnn.kernels.cuda.rows import make_softmax_kernel

    softmax, y = make_softmax_kernel(64), cuda.to_device(np.zeros(8, np.float32))
    softmax[128, 64](y, 4, 2, 1)
    cuda.synchronize()
    for grid, threads, shared_bytes in (
        ((1, 1 << 16), 64, 0),
        (128, 128, 0),  # compiled for 64
        (128, 64, 50_000),  # not asked for
    ):
        try:
            softmax[grid, threads, 0, shared_bytes](y, 4, 2, 1)
        except gpu_errors():
            continue
        raise AssertionError(f"launched {(grid, threads, shared_bytes)}")


@check("server")
def a_server_steps_keeps_and_restores_its_streams() -> None:
    """Its shard has a thread of its own; the second server finds what the first has written."""
    from streamrnn_client import Client
    from streamrnn_server.testing import serving

    model, x = model_of([("rnn_tanh", NUM_OUTPUTS)], head=None), inputs(60, 8)
    with tempfile.TemporaryDirectory() as directory:
        options: Any = {"device": "cuda", "max_streams": 70, "state_dir": Path(directory)}
        options["durability"] = "checkpoint"
        for steps in (range(3), range(3, 5)):
            with serving({"m": model}, **options) as server, Client(server.endpoints[0]) as client:
                for t in steps:
                    ys = client.step_many({k: x[k, t] for k in range(60)}, model="m")
                    y = np.stack([ys[k] for k in range(60)])
                    np.testing.assert_array_equal(y, expected(x)[:, t])
                if 4 in steps:  # many steps of one stream are one launch
                    y = client.stream(7, model="m").steps(x[7, 5:])
                    np.testing.assert_array_equal(y, expected(x)[7, 5:])
