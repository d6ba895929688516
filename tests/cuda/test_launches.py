"""The compiled launches of a batch, on a fake driver that records calls."""

from __future__ import annotations

import ctypes
import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn.errors import DeviceError
from streamrnn.kernels.cuda import plan
from streamrnn.kernels.cuda.launches import (
    Launch,
    Launches,
    Limits,
    Number,
    launches_of_batch,
    take_halves,
)
from streamrnn.kernels.cuda.table import (
    DRIVER_FUNCTIONS,
    MAX_MAPPED_BYTES,
    begin_batch,
    compute_batch,
    end_batch,
    pack_launches,
    parameters_of,
)

WIDE, INT = ctypes.c_uint64, ctypes.c_uint32
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cuCtxSetCurrent": (WIDE,),
    "cuMemcpyHtoDAsync": (WIDE, WIDE, WIDE, WIDE),
    "cuMemcpyDtoHAsync": (WIDE, WIDE, WIDE, WIDE),
    "cuEventRecord": (WIDE, WIDE),
    "cuStreamWaitEvent": (WIDE, WIDE, INT),
    "cuEventSynchronize": (WIDE,),
    "cuLaunchKernel": (WIDE, *(INT,) * 7, WIDE, WIDE, WIDE),
    "cuLaunchCooperativeKernel": (WIDE, *(INT,) * 7, WIDE, WIDE),
}
NAMES = (
    *("context", "compute", "copies", "sent", "computed", "received"),
    *("host_x", "mapped_x", "device_x", "host_y", "mapped_y", "device_y"),
)
HANDLES = {name: 1000 + number for number, name in enumerate(NAMES)}
# 7 inputs and 3 outputs; the first two launches are two tiles of one layer.
X, STRIDE, ROWS = Number.X_START, Number.X_STRIDE, Number.NUM_ROWS
Y, Y_STRIDE = Number.Y_START, Number.Y_STRIDE
OF_BATCH = (ROWS, Number.STEP, Number.NUM_STEPS)
ARRAY = SimpleNamespace(size=11, dtype=np.dtype(np.float32))
STEP = (
    Launch("wide", (X, ARRAY, ROWS, 5), 256, 4, block_rows=128, min_blocks=16, num_alternatives=1),
    Launch("narrow", (6, X, STRIDE), 128, 8, block_rows=8),
    Launch("head", (ARRAY, Y, Y_STRIDE, *OF_BATCH), 64, 1, block_rows=1),
)
PERSISTENT = (
    Launch("persistent", (9, ARRAY, *OF_BATCH), 128, 32, shared_bytes=60_000, is_cooperative=True),
    Launch("another", (X, STRIDE), 32, 12),
)
LAST = (Launch("softmax", (ROWS, ARRAY), 32, 12),)
SIZES = {"max_rows": 512, "max_persistent_rows": 2, "num_inputs": 7, "num_outputs": 3}
LAUNCHES = Launches(STEP, PERSISTENT, LAST, **SIZES)
LIMITS = Limits(threads=256, shared_bytes=100_000, blocks_together=132)


# An array that differs from batch to batch is given by the number that is its address.
INPUTS, OUTPUTS = (SimpleNamespace(size=11, dtype=np.dtype(np.float32)) for _ in range(2))
ADDRESSES = {id(INPUTS): Number.X_ADDRESS, id(OUTPUTS): Number.Y_ADDRESS}


def pointer(array):
    return ADDRESSES.get(id(array), 1 << 40)


def packed(launches, limits, function=lambda launch: 1, head=HANDLES):
    return pack_launches(launches, function, pointer, head, lambda launch: limits)


class Driver:
    """Notes every call, and what the parameters of a launch are while it is made."""

    def __init__(self, launches=LAUNCHES):
        self.calls: list[tuple[Any, ...]] = []
        self.fails_at = ""
        self.launches = launches
        self.slots, self.halves = np.arange(512, dtype=np.int32), np.zeros(512, np.uint8)
        self.handles = dict(HANDLES, host_x=self.slots.ctypes.data)
        self.head = dict(self.handles, halves=self.halves.ctypes.data)
        self._kept: list[Any] = []
        for name in DRIVER_FUNCTIONS:
            function = ctypes.CFUNCTYPE(ctypes.c_int32, *ARGUMENTS[name])(self._taker(name))
            self._kept.append(function)
            self.head[name] = ctypes.cast(function, ctypes.c_void_p).value or 0
        self.all = (*launches.step, *launches.persistent, *launches.last)
        self.kernels = {launch.kernel: 50 + k for k, launch in enumerate(self.all)}
        self.table, kept = packed(
            launches, LIMITS, lambda launch: self.kernels[launch.kernel], self.head
        )
        self._kept += kept

    def _taker(self, name):
        def take(*args):
            if name.startswith("cuLaunch"):
                launch = next(each for each in self.all if self.kernels[each.kernel] == args[0])
                num_words = len(parameters_of(launch.arguments, lambda array: 0))
                pointers = ctypes.cast(args[9], ctypes.POINTER(ctypes.POINTER(ctypes.c_int64)))
                words = tuple(pointers[k][0] for k in range(num_words))
                self.calls.append((name, launch.kernel, *args[1:9], words, *args[10:]))
            else:
                self.calls.append((name, *args))
            return 700 if name == self.fails_at else 0

        return take


@pytest.fixture
def driver():
    return Driver()


def expected_launches(driver, num_rows, num_steps, first_step=0, place="device"):
    calls: list[tuple[Any, ...]] = []
    buffers = {Number.X_ADDRESS: HANDLES[f"{place}_x"], Number.Y_ADDRESS: HANDLES[f"{place}_y"]}
    batch = (driver.launches, num_rows, num_steps, first_step)
    for launch, grid, arguments in launches_of_batch(*batch):
        words = tuple(
            buffers[word] if isinstance(word, Number) else word
            for word in parameters_of(arguments, pointer)
        )
        shape = (*grid, 1, launch.threads, 1, 1, launch.shared_bytes, HANDLES["compute"])
        if launch.is_cooperative:
            calls.append(("cuLaunchCooperativeKernel", launch.kernel, *shape, words))
        else:
            calls.append(("cuLaunchKernel", launch.kernel, *shape, words, 0))
    return calls


@pytest.mark.parametrize(("num_rows", "num_steps"), [(1, 1), (2, 3), (3, 2), (385, 1), (512, 2)])
@pytest.mark.parametrize("first_step", [0, 5])
def test_launches_pass_the_declared_arguments(driver, num_rows, num_steps, first_step):
    assert compute_batch(driver.table.ctypes.data, num_rows, num_steps, first_step) == 0
    context, *launches = driver.calls
    assert context == ("cuCtxSetCurrent", HANDLES["context"])
    assert launches == expected_launches(driver, num_rows, num_steps, first_step)


def test_the_tile_goes_by_the_number_of_blocks():
    def kernels(*batch):
        return [(launch.kernel, grid) for launch, grid, _ in launches_of_batch(LAUNCHES, *batch)]

    last = [("softmax", (12, 1))]
    assert kernels(384, 1) == [("narrow", (48, 8)), ("head", (384, 1)), *last]
    assert kernels(385, 1) == [("wide", (4, 4)), ("head", (385, 1)), *last]
    assert kernels(2, 1) == [("narrow", (1, 8)), ("head", (2, 1)), *last]
    assert kernels(2, 9) == [("persistent", (32, 1)), ("another", (12, 1)), *last]
    assert kernels(3, 2) == [*2 * [("narrow", (1, 8)), ("head", (3, 1))], *last]


# Each launch is at the limit that the field names, and one less is too little.
AT_A_LIMIT = {
    "threads": (Launch("k", (ROWS,), 256, 1), 256),
    "shared_bytes": (Launch("k", (ROWS,), 32, 1, shared_bytes=60_000), 60_000),
    "blocks_together": (Launch("k", (ROWS,), 32, 100, is_cooperative=True), 100),
    "blocks_x": (Launch("k", (ROWS,), 32, 1, block_rows=1), 512),
    "blocks_y": (Launch("k", (ROWS,), 32, 7, block_rows=128), 7),
    "parameter_bytes": (Launch("k", (ROWS, 5, ARRAY), 32, 1), 8 * 9),
}


@pytest.mark.parametrize("limit", AT_A_LIMIT)
@pytest.mark.parametrize("is_persistent", [False, True])
def test_a_launch_beyond_a_limit_of_the_gpu_is_refused_by_its_name(limit, is_persistent):
    step: tuple[Launch, ...]
    persistent: tuple[Launch, ...]
    launch, most = AT_A_LIMIT[limit]
    step, persistent = ((), (launch,)) if is_persistent else ((launch,), ())
    launches = Launches(step, persistent, (), **SIZES)
    packed(launches, dataclasses.replace(LIMITS, **{limit: most}))
    with pytest.raises(DeviceError, match=rf"kernel k needs {most:,} .* takes {most - 1:,}; use"):
        packed(launches, dataclasses.replace(LIMITS, **{limit: most - 1}))


def test_no_number_of_rows_is_too_many_blocks_for_a_gpu():
    """Rows lie in x, which takes 2,147,483,647 blocks; y takes 65,535."""
    launches = dataclasses.replace(LAUNCHES, max_rows=2**31 - 1)
    packed(launches, LIMITS)
    for launch, grid, _ in launches_of_batch(LAUNCHES, 70_000, 1):
        assert grid[1] <= 8, launch


def test_a_batch_is_copied_computed_and_copied_back(driver):
    table = driver.table.ctypes.data
    assert begin_batch(table, 2, 1, 0) == 0
    assert end_batch(table) == 0
    h = driver.handles
    assert driver.calls == [
        ("cuCtxSetCurrent", h["context"]),
        ("cuMemcpyHtoDAsync", h["device_x"], h["host_x"], 4 * (4 + 2 * 7), h["compute"]),
        *expected_launches(driver, 2, 1),
        ("cuMemcpyDtoHAsync", h["host_y"], h["device_y"], 4 * 2 * 3, h["compute"]),
        ("cuEventRecord", h["received"], h["compute"]),
        ("cuCtxSetCurrent", h["context"]),
        ("cuEventSynchronize", h["received"]),
    ]


def test_copies_wait_for_the_kernels_whose_buffers_they_use(driver):
    assert begin_batch(driver.table.ctypes.data, 5, 4, 1) == 0
    h = driver.handles
    assert driver.calls == [
        ("cuCtxSetCurrent", h["context"]),
        ("cuMemcpyHtoDAsync", h["device_x"], h["host_x"], 4 * (8 + 5 * 4 * 7), h["copies"]),
        ("cuEventRecord", h["sent"], h["copies"]),
        ("cuStreamWaitEvent", h["compute"], h["sent"], 0),
        *expected_launches(driver, 5, 4),
        ("cuEventRecord", h["computed"], h["compute"]),
        ("cuStreamWaitEvent", h["copies"], h["computed"], 0),
        ("cuMemcpyDtoHAsync", h["host_y"], h["device_y"], 4 * 5 * 4 * 3, h["copies"]),
        ("cuEventRecord", h["received"], h["copies"]),
    ]


# At most so many rows of a slot and seven inputs; their outputs are fewer.
MOST_MAPPED = 127


@pytest.mark.parametrize("overlaps", [0, 1])
@pytest.mark.parametrize(
    ("num_rows", "num_steps", "last", "is_small"),
    [
        (MOST_MAPPED, 1, (), True),
        (MOST_MAPPED + 2, 1, (), False),
        (MOST_MAPPED, 2, (), False),
        (MOST_MAPPED, 1, LAST, False),
    ],
)
def test_a_step_of_few_streams_is_computed_in_the_host_s_memory(
    num_rows, num_steps, last, is_small, overlaps
):
    """With nothing behind it: a softmax would read its outputs again and again."""
    assert MAX_MAPPED_BYTES == 4 * 8 * (MOST_MAPPED + 1)
    step = (Launch("layer", (INPUTS, X, OUTPUTS), 128, 8, block_rows=8),)
    driver = Driver(Launches(step, (), last, **SIZES))
    assert begin_batch(driver.table.ctypes.data, num_rows, num_steps, overlaps) == 0
    names = [name for name, *_ in driver.calls]
    assert ("cuMemcpyHtoDAsync" in names) == ("cuMemcpyDtoHAsync" in names) == (not is_small)
    launched = [call for call in driver.calls if call[0].startswith("cuLaunch")]
    place = "mapped" if is_small else "device"
    assert launched == expected_launches(driver, num_rows, num_steps, place=place)
    stream = HANDLES["copies" if overlaps and not is_small else "compute"]
    assert driver.calls[-1] == ("cuEventRecord", HANDLES["received"], stream)


@given(st.lists(st.tuples(st.sets(st.integers(0, 9), min_size=1), st.integers(1, 5)), max_size=20))
def test_a_row_s_code_says_where_its_newest_h_is(batches):
    halves, num_steps_taken = np.zeros(10, np.uint8), np.zeros(10, int)
    for streams, num_steps in batches:
        slots = np.array(sorted(streams, reverse=True), np.int32)
        codes = slots.copy()
        take_halves(codes.ctypes.data, halves.ctypes.data, len(codes), num_steps)
        np.testing.assert_array_equal(codes, 2 * slots + num_steps_taken[slots] % 2)
        num_steps_taken[slots] += num_steps
    np.testing.assert_array_equal(halves, num_steps_taken % 2)


@pytest.mark.parametrize("name", DRIVER_FUNCTIONS)
def test_after_an_error_nothing_more_is_asked_of_the_driver(driver, name):
    driver.fails_at = name
    table = driver.table.ctypes.data
    is_together = name == "cuLaunchCooperativeKernel"
    error = begin_batch(table, 2 if is_together else 3, 2, 1) or end_batch(table)
    assert error == 700
    assert driver.calls[-1][0] == name
    assert [call[0] for call in driver.calls].count(name) == 1


@pytest.mark.parametrize("struct", [plan.Header, plan.Layer, plan.Input])
def test_kernels_read_each_field_where_the_host_writes_it(struct):
    for name, (_, offset, *_) in (struct.dtype.fields or {}).items():
        assert getattr(plan, name.upper()) == offset // 8, name
