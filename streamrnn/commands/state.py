"""``streamrnn state``: look at a stopped server's streams, and move them."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from streamrnn.commands.printable import printable, unescaped
from streamrnn.errors import RecordError, StateError
from streamrnn.state.journal import ChangeKind
from streamrnn.state.pending import changes_above, journal_entries
from streamrnn.state.record import StreamRecord, decode_record, encode_record
from streamrnn.state.store import DATA_FILE, STREAMS, StateStore
from streamrnn.state.verify import EXIT_CANNOT_OPEN, id_text
from streamrnn_client.protocol import StreamId, canonical_id

__all__ = ["configure", "run"]

_NUMBERINGS = ("no step yet", "numbered", "unnumbered")


def configure(
    parser: argparse.ArgumentParser,
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """Add the command's arguments; return what takes more actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    lines = {
        "list": "one line for each stream",
        "show": "all about one stream",
        "export": "write a stream's record to a file",
        "import": "make a stream of a record",
        "verify": "read every record and the journal, and say what is damaged",
        "journal": "one line for each change in the journal, with the inputs",
    }
    for name, line in lines.items():
        action = actions.add_parser(name, help=line, description=line, allow_abbrev=False)
        action.add_argument("directory", type=Path, metavar="DIR", help="of a stopped server")
        if name in ("show", "export", "import"):
            action.add_argument(
                "stream",
                metavar="STREAM",
                help="its id, as 'list' shows it; an integer as int:7, for 7 means '7'",
            )
        if name in ("export", "import"):
            action.add_argument("file", type=Path, metavar="FILE", help="the record's; - for stdio")
    return actions


def run(args: argparse.Namespace) -> int:
    """Do one action.

    Returns
    -------
    int
        0; 1 if `verify` found damage.

    Raises
    ------
    StateError
        If the directory or the record cannot be used.
    """
    if args.action == "verify":
        return _verify(args.directory)
    store = StateStore(args.directory, read_only=args.action != "import")
    try:
        if args.action == "list":
            return _list(store)
        if args.action == "journal":
            return _list_journal(store)
        if args.action == "import":
            return _import(store, args.stream, args.file)
        num_changes = changes_above(store).get(canonical_id(_parse_id(args.stream)), 0)
        if args.action == "export" and num_changes > 0:
            raise StateError(_not_in_record(args.stream, num_changes))
        record = _read(store, args.stream)
        if args.action == "show":
            _show(record, num_changes)
        else:
            _write(args.file, encode_record(record))
        return 0
    finally:
        store.close()


def _parse_id(text: str) -> StreamId:
    if text.startswith("int:") and text[4:].isdecimal():
        return int(text[4:])
    return unescaped(text.removeprefix("str:"))


def _shown_id(stream: bytes) -> str:
    """Return a canonical id as a command takes it, whatever is in it."""
    text = printable(id_text(stream))
    is_like_another = stream[:1] == b"s" and text.startswith(("int:", "str:"))
    return f"str:{text}" if is_like_another else text


def _read(store: StateStore, text: str) -> StreamRecord:
    data = store.get(STREAMS, canonical_id(_parse_id(text)))
    if data is None:
        raise StateError(f"there is no stream {text!r} in {store.directory}")
    return decode_record(data)


def _not_in_record(text: str, num_changes: int) -> str:
    return (
        f"stream {text!r} has {num_changes} changes in the journal that are not in its record: "
        "start the server with its model, which applies them, and stop it"
    )


def _list_journal(store: StateStore) -> int:
    print("segment\tgroup\tstream\tchange\tincarnation\tnum_changes\tseq\tdata")
    for segment, sequence, entry in journal_entries(store):
        change = ChangeKind(entry.kind).name.lower()
        numbers = entry.incarnation, entry.num_changes, entry.seq
        place = segment.path.name, sequence, _shown_id(entry.stream)
        print("\t".join(map(str, (*place, change, *numbers, entry.data.hex()))))
    return 0


def _list(store: StateStore) -> int:
    print("stream\tmodel\tfingerprint\tlast_seq\twindow\tunused_s")
    for key, data in store.items(STREAMS):
        name = _shown_id(key)
        try:
            record = decode_record(data)
        except RecordError as error:
            print(f"{name}\tdamaged: {printable(str(error))}")
            continue
        last = record.last_seq if record.numbering == 1 else _NUMBERINGS[record.numbering]
        unused_s = store.clock_s - record.clock_s
        shown = (
            name,
            printable(record.model),
            printable(record.fingerprint)[:12],
            last,
            record.window,
            unused_s,
        )
        print("\t".join(map(str, shown)))
    above = changes_above(store)
    if above:
        print(
            f"{len(above)} streams have changes in the journal that are not in their records: "
            "start the server, which applies them",
            file=sys.stderr,
        )
    return 0


def _show(record: StreamRecord, num_changes: int) -> None:
    shown = {
        "stream": _shown_id(record.stream),
        "model": printable(record.model),
        "fingerprint": printable(record.fingerprint),
        "arithmetic": printable(record.arithmetic),
        "owner": printable(record.owner) or "(nobody)",
        "numbering": _NUMBERINGS[record.numbering],
        "last_seq": record.last_seq,
        "window": record.window,
        "steps kept": len(record.digests),
        "outputs kept": len(record.outputs),
        "row bytes": len(record.row),
        "written at": f"{record.clock_s} s of serving",
        "in the journal": f"{num_changes} changes more",
    }
    for name, value in shown.items():
        print(f"{name:16}{value}")


def _write(path: Path, data: bytes) -> None:
    if str(path) == "-":
        sys.stdout.buffer.write(data)
    else:
        path.write_bytes(data)


def _import(store: StateStore, text: str, path: Path) -> int:
    record = decode_record(sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes())
    stream = canonical_id(_parse_id(text))
    if store.get(STREAMS, stream) is not None:
        raise StateError(f"stream {text!r} is in {store.directory} already")
    if num_changes := changes_above(store).get(stream, 0):
        raise StateError(_not_in_record(text, num_changes))
    store.commit([(STREAMS, stream, encode_record(record.renamed(stream)))], store.clock_s)
    return 0


def _verify(directory: Path) -> int:
    """Let another process read everything: a damaged file may end the one that does."""
    command = [sys.executable, "-X", "utf8", "-m", "streamrnn.state.verify", str(directory)]
    child = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="backslashreplace"
    )
    print(child.stdout, end="")
    if child.returncode == EXIT_CANNOT_OPEN:
        raise StateError(child.stderr)
    if child.returncode < 0:
        print(
            f"{directory / DATA_FILE} is damaged: who read it was ended by "
            f"{signal.Signals(-child.returncode).name}. A server is ended too when it comes there: "
            "restore the file from a copy, or export what can be read"
        )
        return 1
    print(child.stderr, end="", file=sys.stderr)
    return child.returncode
