"""``streamrnn state``: streams on disk, and backups of them."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from streamrnn import __version__
from streamrnn.commands import state
from streamrnn.commands.printable import printable
from streamrnn.errors import StateError
from streamrnn.state.backup import BackupProcess, restore_backup
from streamrnn.state.store import StateStore
from streamrnn_client.words import counted
from streamrnn_server.commands.answers import (
    check,
    is_list,
    is_number,
    is_plain,
    is_text,
    of_fields,
)
from streamrnn_server.commands.connection import add_keys, connected, keys_of
from streamrnn_server.config import format_bytes

__all__ = ["configure", "run"]

_ADDRESS = "tcp://"
_TIMEOUT_S = 60.0  # a checkpoint of millions of streams takes its time
_FIRST_LOOK_S, _MAX_LOOK_S = 0.05, 1.0
_DONE = of_fields(
    {
        "path": is_text,
        **dict.fromkeys(("num_bytes", "num_streams", "num_snapshots", "num_damages"), is_number),
        "made_at": is_plain,
    },
    {"damages": is_list(is_plain)},
)
_STATES = {
    "running": of_fields({}),
    "failed": of_fields({"reason": is_text}),
    "done": _DONE,
}


def _is_told(found: Any) -> bool:
    state = found.get("state") if isinstance(found, dict) else None
    return isinstance(state, str) and state in _STATES and _STATES[state](found)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    actions = state.configure(parser)
    line = "copy all streams, of a running server too, with checksums"
    backup = actions.add_parser("backup", help=line, description=line, allow_abbrev=False)
    backup.add_argument(
        "source",
        metavar="ADDRESS_OR_DIR",
        help="a running server, which has --backup-dir, or a stopped one's directory",
    )
    backup.add_argument(
        "target",
        metavar="TARGET",
        help="a folder that is made: of a running server its name in --backup-dir",
    )
    add_keys(backup)
    line = "make a state directory of a backup, all of it or nothing"
    restore = actions.add_parser("restore", help=line, description=line, allow_abbrev=False)
    restore.add_argument("backup", type=Path, metavar="BACKUP", help="its folder")
    restore.add_argument(
        "directory", type=Path, metavar="DIR", help="new, or empty; for serve --state-dir"
    )


def run(args: argparse.Namespace) -> int:
    """Do one action.

    Returns
    -------
    int
        0; 1 if there was damage.

    Raises
    ------
    StateError
        If there is no backup, or nothing was restored.
    """
    if args.action == "restore":
        about = restore_backup(args.backup, args.directory)
        return _tell(f"restored to {args.directory}", about)
    if args.action != "backup":
        return state.run(args)
    if args.source.startswith(_ADDRESS):
        return _back_up_server(args)
    store = StateStore(Path(args.source), read_only=True)  # nobody else uses it meanwhile
    try:
        about = BackupProcess(store.directory, Path(args.target), __version__).wait()
    finally:
        store.close()
    return _tell(f"copied to {args.target}", about)


def _back_up_server(args: argparse.Namespace) -> int:
    """Have a server write what it has not yet, and then a backup; wait for it."""
    token, wait_s = secrets.token_hex(16), _FIRST_LOOK_S
    keys, what = keys_of(args), f"the answer of {args.source} to backup"
    with connected(args.source, keys, _TIMEOUT_S) as client:
        endpoints = client.hello().endpoints
        for endpoint in [args.source] if len(endpoints) == 1 else endpoints:
            with connected(endpoint, keys, _TIMEOUT_S) as shard:
                if not shard.call("sync", [None]):
                    raise StateError("the server cannot write its state directory: no backup made")
        while (found := check(client.call("backup", [args.target, token]), _is_told, what))[
            "state"
        ] == "running":
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_LOOK_S)
    if found["state"] != "done":
        raise StateError(printable(found["reason"]))
    text = f"copied to {printable(found['path'])}, {format_bytes(found['num_bytes'])}"
    return _tell(text, found)


def _tell(what: str, about: dict[str, Any]) -> int:
    made_at = printable(str(about["made_at"]))
    streams = counted(about["num_streams"], "stream")
    snapshots = counted(about["num_snapshots"], "snapshot")
    print(f"{streams} and {snapshots} {what}, as of {made_at}")
    for line in about.get("damages", []):
        print(printable(str(line)), file=sys.stderr)
    if about["num_damages"]:
        print(
            f"{counted(about['num_damages'], 'place')} in what was copied had damage: 'streamrnn "
            "state verify' tells where; all else is whole",
            file=sys.stderr,
        )
    return 1 if about["num_damages"] else 0
