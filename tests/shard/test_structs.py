"""Structs in compiled code: no stray float64, no copies, and the sizes that caches are made of."""

import importlib
import pkgutil

import numba
import pytest
from numba.core import types
from numba.core.dispatcher import Dispatcher

import streamrnn_server.shard as shard_package
from streamrnn.kernels.pointers import address
from streamrnn_server.shard.gpu.loop import compile_for_gpu
from streamrnn_server.shard.loop import serve
from streamrnn_server.shard.memory.header import Header
from streamrnn_server.shard.requests.request import Request, request_at
from tests.support.compile import typed_overloads

# Numbers of the wire are float64 until the model is known. Nothing else is: a signed and an
# unsigned number make one by accident, and an address above 2**53 would lose its last bits.
ON_FLOAT64 = {"_convert", "_read_long_head", "read_numbers"}


def compiled_functions():
    """Yield every compiled function of the shard, each once."""
    for info in pkgutil.walk_packages(shard_package.__path__, shard_package.__name__ + "."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Dispatcher) and value.py_func.__module__ == info.name:
                yield value


@pytest.fixture(scope="module")
def lines():
    serve.compile((types.int64,))
    compile_for_gpu()
    return {
        function.py_func.__name__: [line for each in typed_overloads(function) for line in each]
        for function in compiled_functions()
    }


def test_the_types_of_most_functions_are_known(lines):
    assert sum(len(each) > 0 for each in lines.values()) > 150
    assert any("Record" in line for line in lines["admit"])


def test_only_numbers_of_the_wire_are_float64(lines):
    found = {
        name: line
        for name, each in lines.items()
        for line in each
        if "float64" in line.rpartition("  :: ")[2]
    }
    assert {name: line for name, line in found.items() if name not in ON_FLOAT64} == {}
    assert found.keys() == ON_FLOAT64  # the list names nothing that is not there


@numba.njit
def _identity(struct):
    return struct


@numba.njit
def _other_address(at):
    request = request_at(at)
    other = _identity(request)
    other.msgid = 7
    return address(other), request.msgid


def test_a_struct_is_passed_and_returned_without_a_copy():
    request = Request.one()
    at = int(request.__array_interface__["data"][0])
    assert _other_address(at) == (at, 7)
    assert request["msgid"] == 7


def test_headers_and_requests_fill_whole_cache_lines():
    assert Header.dtype.itemsize == 64
    assert Request.dtype.itemsize % 64 == 0
