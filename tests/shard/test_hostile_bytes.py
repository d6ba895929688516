"""What reads bytes from outside reads none beside them."""

from __future__ import annotations

import pytest

from tests.shard.guarded import check_in_child

MODULE = "tests.shard.hostile_bytes"


@pytest.mark.parametrize("name", ["decoder", "record_reader", "index"])
def test_reads_nothing_beside_the_bytes(name):
    check_in_child(MODULE, name)


@pytest.mark.parametrize("name", ["read_one_byte_too_many", "read_one_byte_too_early"])
def test_a_byte_beside_them_ends_the_process(name):
    with pytest.raises(AssertionError, match="SIGSEGV"):
        check_in_child(MODULE, name)
