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
from streamrnn_client import Client
from streamrnn_server.commands.status import add_keys
from streamrnn_server.config import format_bytes

__all__ = ["configure", "run"]

_ADDRESS = "tcp://"
_TIMEOUT_S = 60.0  # a checkpoint of millions of streams takes its time
_FIRST_LOOK_S, _MAX_LOOK_S = 0.05, 1.0


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
    keys = {"curve_key": args.curve_key, "server_key": args.server_key}
    with Client(args.source, timeout_s=_TIMEOUT_S, **keys) as client:
        endpoints = client.hello().endpoints
        for endpoint in [args.source] if len(endpoints) == 1 else endpoints:
            with Client(endpoint, timeout_s=_TIMEOUT_S, **keys) as shard:
                if not shard.call("sync", [None]):
                    raise StateError("the server cannot write its state directory: no backup made")
        while (found := client.call("backup", [args.target, token]))["state"] == "running":
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_LOOK_S)
    if found["state"] != "done":
        raise StateError(printable(found["reason"]))
    text = f"copied to {printable(found['path'])}, {format_bytes(found['num_bytes'])}"
    return _tell(text, found)


def _tell(what: str, about: dict[str, Any]) -> int:
    made_at = printable(str(about["made_at"]))
    print(
        f"{about['num_streams']} streams and {about['num_snapshots']} snapshots {what}, as of "
        f"{made_at}"
    )
    for line in about.get("damages", []):
        print(printable(str(line)), file=sys.stderr)
    if about["num_damages"]:
        print(
            f"{about['num_damages']} things were damaged in what was copied: 'streamrnn state "
            "verify' names them; all else is whole",
            file=sys.stderr,
        )
    return 1 if about["num_damages"] else 0
