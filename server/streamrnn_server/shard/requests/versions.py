"""Which version of a model a new stream gets that is opened by the name of all of them."""

from __future__ import annotations

from streamrnn.kernels.jit import jit
from streamrnn_server.shard.requests.request import Request
from streamrnn_server.shard.structs import SHARES, Alias, Shard, alias_at

__all__ = ["alias_of", "version_now"]

_ALIAS_BYTES = Alias.dtype.itemsize
_SHARE_SHIFT = 20  # of a hash: neither its highest bits, which tell the shard, nor the lowest


@jit
def alias_of(shard: Shard, number: int) -> Alias:
    """Return an alias by its number, which is that of its family too."""
    return alias_at(shard.aliases + number * _ALIAS_BYTES)


@jit
def version_now(shard: Shard, request: Request) -> int:
    """Return the index of the version that an alias means now; -1: none, while that changes.

    It is asked again when the stream begins: the alias may have changed while a request waited.
    """
    alias = alias_of(shard, request.alias - 1)
    is_of_share = (request.hash >> _SHARE_SHIFT) % SHARES < alias.share
    return alias.other if is_of_share else alias.model
