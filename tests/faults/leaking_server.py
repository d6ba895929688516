"""The server with one deallocation less: a stream that ends never gives its ring of outputs back.

It is compiled anew, so its machine code must go to a cache of its own (STREAMRNN_CACHE_DIR).
"""

import sys

from streamrnn.kernels.jit import jit
from streamrnn_server.shard.streams import replay_ring as ring


@jit
def forget_ring(arena, header):
    header.ring = 0


if __name__ == "__main__":
    assert "streamrnn_server.shard.streams.slots" not in sys.modules  # which calls it
    ring.drop_ring = forget_ring
    from streamrnn_server.cli import main

    sys.exit(main())
