"""What all commands that ask a running server have in common: its address, keys and errors."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamrnn.errors import ServerError
from streamrnn_client import Client
from streamrnn_client.errors import StreamRNNClientError
from streamrnn_client.protocol import DEFAULT_PORT

__all__ = ["add_keys", "add_server", "connected", "keys_of"]

_TIMEOUT_S = 5.0


def add_server(parser: argparse.ArgumentParser, is_optional: bool = True) -> None:
    """Add the arguments that say which server to ask, and who does."""
    default = {"nargs": "?", "default": f"tcp://127.0.0.1:{DEFAULT_PORT}"} if is_optional else {}
    parser.add_argument(
        "address",
        metavar="ADDRESS",
        help="of a running server" + " (%(default)s)" * is_optional,
        **default,  # type: ignore[arg-type]
    )
    add_keys(parser)


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say who asks, where a server wants keys."""
    parser.add_argument(
        "--curve-key", type=Path, metavar="FILE", help="your NAME.key_secret, if it asks for keys"
    )
    parser.add_argument("--server-key", type=Path, metavar="FILE", help="the server's NAME.key")


def keys_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_keys` has found, as options of a client."""
    return {"curve_key": args.curve_key, "server_key": args.server_key}


@contextlib.contextmanager
def connected(
    address: str, keys: dict[str, Any], timeout_s: float = _TIMEOUT_S
) -> Iterator[Client]:
    """Make a client of a server while the block runs.

    Raises
    ------
    ServerError
        For every error of the client's, with its words.
    """
    try:
        with Client(address, timeout_s=timeout_s, **keys) as client:
            yield client
    except StreamRNNClientError as error:
        raise ServerError(str(error)) from error
