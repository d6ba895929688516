"""``streamrnn keys``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from streamrnn.errors import StreamRNNError

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="of the server, or of a user")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where to write NAME.key (public) and NAME.key_secret (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Make a pair of CURVE keys.

    Returns
    -------
    int
        0.

    Raises
    ------
    StreamRNNError
        If there are such keys already, or the name is none.
    """
    from zmq.auth import create_certificates

    if args.name != Path(args.name).name or args.name.startswith("."):
        raise StreamRNNError(f"{args.name!r} is no name of a file; give one like 'alice'")
    args.out.mkdir(parents=True, exist_ok=True)
    for suffix in (".key", ".key_secret"):
        path = args.out / (args.name + suffix)
        if path.exists():
            raise StreamRNNError(
                f"{path} exists already; whoever uses it would be locked out if it were replaced: "
                "delete it first, or take another name"
            )
    before = os.umask(0o077)
    try:
        public, secret = create_certificates(args.out, args.name)
    finally:
        os.umask(before)
    os.chmod(public, 0o644)
    print(f"{public}  public: give it to the other side")
    print(f"{secret}  secret: for {args.name} alone")
    return 0
