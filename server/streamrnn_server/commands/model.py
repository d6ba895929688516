"""``streamrnn model``: change what a running server serves."""

from __future__ import annotations

import argparse
import json
from typing import Any

from streamrnn.commands.printable import printable
from streamrnn.errors import ServerError
from streamrnn.state.catalogue import POLICIES
from streamrnn_client import Client
from streamrnn_client.errors import StreamRNNClientError
from streamrnn_server.commands.shadow import configure_shadow, shadow, shadow_lines
from streamrnn_server.commands.status import add_server

__all__ = ["configure", "run"]

_TIMEOUT_S = 300.0  # a large model's weights are read and packed


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(action: str, line: str) -> argparse.ArgumentParser:
        subparser = actions.add_parser(action, help=line, description=line, allow_abbrev=False)
        add_server(subparser, is_optional=False)
        subparser.add_argument("--json", action="store_true", help="print the answer as JSON")
        return subparser

    add("list", "show the versions that are served, and what new streams get")
    load = add("load", "load a weight file from the server's --models-dir")
    load.add_argument("name", metavar="NAME@VERSION")
    load.add_argument("file", nargs="?", help="its name (NAME@VERSION.safetensors)")
    alias = add("alias", "let new streams get a version; those that there are keep theirs")
    alias.add_argument("name", metavar="NAME@VERSION")
    alias.add_argument(
        "--share",
        type=float,
        default=argparse.SUPPRESS,
        metavar="PART",
        help="of new streams alone, by the hash of their ids: 0.1 is a tenth (1)",
    )
    swap = add("swap", "let new streams get another version, and those that there are go on as it")
    swap.add_argument("name", metavar="NAME@OLD")
    swap.add_argument("to", metavar="NAME@NEW")
    swap.add_argument(
        "--streams",
        choices=POLICIES,
        default=POLICIES[0],
        help="what becomes of those that there are: keep their version until they are closed, "
        "carry their state on under the other weights, or reset it (%(default)s)",
    )
    add("unload", "let a version go that no stream uses").add_argument(
        "name", metavar="NAME@VERSION"
    )
    line = "tell how far outputs would differ, on live streams, before anything is swapped"
    configure_shadow(add("shadow", line))


def run(args: argparse.Namespace) -> int:
    """Ask a server to do it, and print what it says.

    Returns
    -------
    int
        0 after it was done.
    """
    options = {
        key: value
        for key in ("name", "file", "to", "streams", "share")
        if (value := getattr(args, key, None)) is not None
    }
    keys = {"curve_key": args.curve_key, "server_key": args.server_key}
    try:
        with Client(args.address, timeout_s=_TIMEOUT_S, **keys) as client:
            if args.action == "shadow":
                told: Any = shadow(client, args)
            elif args.action == "list":
                told = _list(client)
            else:
                told = client.call("model", [args.action, options])
    except StreamRNNClientError as error:
        raise ServerError(str(error)) from error
    in_words = shadow_lines if args.action == "shadow" else _lines
    lines = [json.dumps(told)] if args.json else in_words(told)
    print("\n".join(map(printable, lines)))
    return 0


def _list(client: Client) -> list[dict[str, Any]]:
    stats = client.stats()
    return [
        {**model.about, "streams": stats.get("models", {}).get(name)}
        for name, model in client.models().items()
    ]


def _lines(told: Any) -> list[str]:
    if isinstance(told, list):
        return [_line_of_version(each) for each in told]
    if "alias" in told:
        share = f", {told['share_of']} {told['share']:.2%} of them" if "share" in told else ""
        return [f"new streams of {told['alias']} get {told['model']}{share}"]
    return [" ".join(f"{key} {value}" for key, value in told.items())]


def _line_of_version(told: dict[str, Any]) -> str:
    parts = [told["name"], told["fingerprint"][:12]]
    if told["streams"] is not None:
        parts.append(f"{told['streams']:,} open")
    if told.get("is_current"):
        parts.append(f"new streams of {told['alias']} get it")
    if "swapped_to" in told:
        parts.append(f"its streams go on as {told['swapped_to']} ({told['policy']})")
    return ", ".join(parts)
