"""The compiled CRC-32 against zlib's."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from streamrnn.state.checksum import crc32
from streamrnn_server.shard.memory.header import address_of

DATA = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8)


@pytest.mark.parametrize("shift", [0, 1, 7])
def test_it_is_what_zlib_computes(shift):
    # Below 64 bytes all of it goes by tables.
    for num_bytes in [*range(300), 1023, 1024, 1160, 9475, 19_993]:
        data = DATA[shift : shift + num_bytes].tobytes()
        assert crc32(address_of(DATA) + shift, num_bytes) == zlib.crc32(data), num_bytes
