"""``streamrnn model``: change what a running server serves."""

from __future__ import annotations

import argparse
import json
from typing import Any

from streamrnn.commands.printable import printable
from streamrnn.state.catalogue import POLICIES
from streamrnn_client import Client
from streamrnn_server.commands.answers import (
    check,
    is_list,
    is_number,
    is_plain,
    is_text,
    of_fields,
    stats_of,
)
from streamrnn_server.commands.connection import add_server, connected, keys_of
from streamrnn_server.commands.shadow import configure_shadow, shadow, shadow_lines

__all__ = ["configure", "run"]

_TIMEOUT_S = 300.0  # a large model's weights are read and packed
_VERSIONS = is_list(
    of_fields(
        {"name": is_text, "fingerprint": is_text},
        dict.fromkeys(("alias", "swapped_to", "policy"), is_text),
    )
)
_ALIAS = of_fields({"alias": is_text, "model": is_text}, {"share_of": is_text, "share": is_number})


def _is_told(told: Any) -> bool:
    return isinstance(told, dict) and is_plain(told) and ("alias" not in told or _ALIAS(told))


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
        "carry their state on under the other weights, reset it, or replay to the other one the "
        "inputs that --history has kept (%(default)s)",
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
    with connected(args.address, keys_of(args), _TIMEOUT_S) as client:
        if args.action == "shadow":
            told: Any = shadow(client, args)
        elif args.action == "list":
            told = _list(client, args.address)
        else:
            told = client.call("model", [args.action, options])
            check(told, _is_told, f"the answer of {args.address} to model {args.action}")
    in_words = shadow_lines if args.action == "shadow" else _lines
    lines = [json.dumps(told)] if args.json else in_words(told)
    print("\n".join(map(printable, lines)))
    return 0


def _list(client: Client, address: str) -> list[dict[str, Any]]:
    numbers = stats_of(client, address).get("models", {})
    told = [
        {**model.about, "streams": numbers.get(name)} for name, model in client.models().items()
    ]
    checked: list[dict[str, Any]] = check(told, _VERSIONS, f"the answer of {address} to models")
    return checked


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
