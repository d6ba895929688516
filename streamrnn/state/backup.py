"""Backups: a copy of a state directory in a folder of its own, with checksums, and back again.

A copy is made by a process of its own, also of a directory that a server uses: it reads one
commit's pages, and nobody waits for it. A damaged page may end that process, and no server. Of the
catalogue of models it has what was said while the pages were read: what a crash then would have
left.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import lmdb

from streamrnn.errors import RecordError, StateError
from streamrnn.kernels.arithmetic import cpu_arithmetics
from streamrnn.state.catalogue import (
    CATALOGUE_FILE,
    MODELS_DIRECTORY,
    WEIGHTS,
    loaded_models,
    parse_content,
    read_content,
    weights_path,
)
from streamrnn.state.journal import JOURNAL_DIRECTORY, segment_paths, sync_directory
from streamrnn.state.record import decode_record
from streamrnn.state.store import DATA_FILE, SNAPSHOTS, STREAMS, StateStore
from streamrnn.state.verify import damages

__all__ = ["ABOUT_FILE", "BackupProcess", "read_about", "restore_backup"]

ABOUT_FILE = "backup.json"
_FORMAT = "streamrnn backup 1"
_SET_ASIDE = "set-aside.json"
_FILE = re.compile(
    rf"{re.escape(DATA_FILE)}|{JOURNAL_DIRECTORY}/"
    rf"(?:\d{{10}}-\d{{5}}-\d{{10}}\.journal|{re.escape(_SET_ASIDE)})"
    rf"|{re.escape(CATALOGUE_FILE)}|{MODELS_DIRECTORY}/{WEIGHTS.pattern}",
    re.ASCII,
)
_FIELDS: dict[str, type] = {
    "files": dict,
    "arithmetics": dict,
    "models": dict,
    "damages": list,
    "server": str,
}
_FIELDS |= {"made_at": str, "num_streams": int, "num_snapshots": int, "num_damages": int}
_SHA256 = re.compile("[0-9a-f]{64}")
_MAX_ABOUT_BYTES = 2**24
_BUFFER_BYTES = 2**20
_MAX_MAP_BYTES = 2**40
_MAX_DAMAGES = 20  # that are written down
_NICENESS = 10  # those who serve come first
_ALL_EPOCHS = -1
_MAX_ATTEMPTS = 100  # at records and catalogue of one moment


class BackupProcess:
    """Makes a backup in another process.

    Parameters
    ----------
    source : Path
        A state directory. Its records are copied as of the last commit.
    target : Path
        Must not be there; its parent must.
    version : str
        Of who makes it.
    epoch : int or None
        Of the server that uses the directory: then segments of the journal from before its start
        are copied, which have what could not be replayed. None if nobody does, and the caller holds
        the directory: then all of them are.

    Raises
    ------
    StateError
        If the target is there already, or no process can be started.
    """

    def __init__(self, source: Path, target: Path, version: str, epoch: int | None = None) -> None:
        self._source, self._target = source, target
        if target.exists() or not target.name:
            raise StateError(f"{target} is there already: name a folder that is not")
        number = str(_ALL_EPOCHS if epoch is None else epoch)
        command = [sys.executable, "-X", "utf8", "-m", "streamrnn.state.backup"]
        command += [str(source), str(target), version, number]
        pipe = subprocess.PIPE
        try:
            self._child = subprocess.Popen(  # Ctrl-C at a server is not meant for it
                command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise StateError(f"cannot start what makes a backup: {error.strerror}") from error

    def wait(self) -> dict[str, Any]:
        """Wait for the end; return what `read_about` does.

        Raises
        ------
        StateError
            If no backup was made; nothing is left of it.
        """
        _, text = self._child.communicate()
        code = self._child.returncode
        if code == 0:
            return read_about(self._target)
        shutil.rmtree(_part_of(self._target), ignore_errors=True)
        if code < 0:
            name = signal.Signals(-code).name
            raise StateError(
                f"no backup was made of {self._source}: who copied it was ended by {name}"
                + (f"; {DATA_FILE} is damaged" if -code in (signal.SIGBUS, signal.SIGSEGV) else "")
            )
        raise StateError(text.decode(errors="replace").strip() or f"exit code {code}")

    def stop(self) -> None:
        """End it; `wait` raises then."""
        self._child.terminate()


def read_about(backup: Path) -> dict[str, Any]:
    """Return what a backup says of itself.

    Returns
    -------
    dict
        ``made_at``, ``server``, ``num_streams``, ``num_snapshots``, ``arithmetics`` (id -> number
        of records), ``models`` (name and fingerprint -> number of streams), ``damages`` (of the
        directory that was copied) and ``files`` (name -> bytes and SHA-256).

    Raises
    ------
    StateError
        If it is none, or that was changed.
    """
    path = backup / ABOUT_FILE
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_ABOUT_BYTES + 1)
    except OSError as error:
        raise StateError(f"{backup} is no backup: cannot read {path}: {error.strerror}") from error
    try:
        content = json.loads(data[:_MAX_ABOUT_BYTES]) if len(data) <= _MAX_ABOUT_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise StateError(f"{path} is damaged, or none of {_FORMAT!r}")
    if content.pop("sha256", None) != _digest_of(content):
        raise StateError(f"{path} is damaged: its checksum does not fit")
    for name, kind in _FIELDS.items():
        if not isinstance(content.get(name), kind):
            raise StateError(f"{path} is damaged: {name!r} is no {kind.__name__}")
    if DATA_FILE not in content["files"]:
        raise StateError(f"{path} names no {DATA_FILE}")
    for name, value in content["files"].items():
        if not _FILE.fullmatch(name) or not _is_seal(value):
            raise StateError(f"{path} names a file that no backup has: {name[:100]!r}")
    return content


def restore_backup(backup: Path, directory: Path) -> dict[str, Any]:
    """Make a state directory of a backup, all of it or nothing.

    Returns
    -------
    dict
        What `read_about` does.

    Raises
    ------
    StateError
        If the directory holds anything, a file of the backup is missing or was changed, or its
        records are of an arithmetic that this release does not compute.
    """
    about = read_about(backup)
    unknown = [each for each in about["arithmetics"] if not _is_computed_here(each)]
    if unknown:
        raise StateError(
            f"{backup} has streams of arithmetic {', '.join(unknown)}, and this release computes "
            f"{', '.join(cpu_arithmetics())}: they could not go on here. Restore it with "
            f"StreamRNN {about['server']}, which has made it, on such a machine"
        )
    directory = directory.resolve()
    part = _part_of(directory)
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise StateError(f"{directory} is not empty: name a new directory; nothing was changed")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(0o700, parents=True)
        try:
            for folder in (JOURNAL_DIRECTORY, MODELS_DIRECTORY):
                if (backup / folder).is_symlink():
                    raise StateError(f"{backup / folder} is a link: no backup has any")
            for name, (num_bytes, digest) in about["files"].items():
                _copy(backup / name, part / name, num_bytes)
                if _seal(part / name) != [num_bytes, digest]:
                    raise StateError(
                        f"{backup / name} is damaged: it has not the {num_bytes} bytes with the "
                        f"SHA-256 that {ABOUT_FILE} tells; nothing was restored"
                    )
            _check_models(part)
            StateStore(part, read_only=True).close()
            _finish(part, directory)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError as error:
        hint = ": name a new folder in it" if error.errno == errno.EBUSY else ""
        raise StateError(
            f"cannot restore {backup} to {directory}: {error.filename}: {error.strerror}{hint}"
        ) from error
    return about


def _make(source: Path, target: Path, version: str, epoch: int) -> None:
    """Make a backup; what there is of it before it is whole lies beside the target."""
    part = _part_of(target)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(0o700)
    is_live = epoch != _ALL_EPOCHS
    try:
        paths = [
            path
            for path in segment_paths(source / JOURNAL_DIRECTORY)
            if not is_live or int(path.name.split("-")[0]) < epoch
        ]
        set_aside = source / JOURNAL_DIRECTORY / _SET_ASIDE
        for path in [*paths, *([set_aside] if set_aside.exists() else [])]:
            _copy(path, part / JOURNAL_DIRECTORY / path.name)
        # Segments first: what is taken out of them meanwhile is in the records then.
        _copy_of_one_moment(source, part, is_live)
        files = {
            str(path.relative_to(part)): _seal(path)
            for path in sorted(part.rglob("*"))
            if path.is_file()
        }
        content = {"format": _FORMAT, "server": version, "files": files, **_survey(part)}
        content["made_at"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content["sha256"] = _digest_of(content)
        with (part / ABOUT_FILE).open("x") as file:
            json.dump(content, file, indent=1, ensure_ascii=False)
        _seal(part / ABOUT_FILE)
        _finish(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _copy_of_one_moment(source: Path, part: Path, is_live: bool) -> None:
    """Copy the catalogue with its models, and the records of a moment when it said that."""
    for _ in range(_MAX_ATTEMPTS):
        before = _stamp(source)
        try:
            _copy_models(source, part)
        except FileNotFoundError:
            if _stamp(source) == before:
                raise
            continue  # a model was unloaded
        (part / DATA_FILE).unlink(missing_ok=True)
        _copy_records(source, part, is_live)
        if _stamp(source) == before:
            break
    else:
        raise StateError(
            f"no backup was made of {source}: its catalogue of models has changed all the time "
            f"({_MAX_ATTEMPTS} attempts); make it again"
        )
    _check_models(part)


def _stamp(directory: Path) -> tuple[int, ...] | None:
    """Return what tells a catalogue from the next one, also if that says the same again."""
    try:
        found = (directory / CATALOGUE_FILE).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _copy_models(source: Path, part: Path) -> None:
    """Copy the catalogue, and the models that it names; drop those that one before has named."""
    catalogue = read_content(source)
    content = parse_content(catalogue, source / CATALOGUE_FILE)
    wanted = {weights_path(part, each.sha256) for each in content.models.values()}
    for path in (part / MODELS_DIRECTORY).glob("*"):
        if path not in wanted:
            path.unlink()
    for path in wanted:
        if not path.exists():
            _copy(source / path.relative_to(part), path)
    if catalogue is not None:
        (part / CATALOGUE_FILE).write_bytes(catalogue)


def _check_models(directory: Path) -> None:
    """Raise StateError unless there are the models that the catalogue names, whole, and no more."""
    content = parse_content(read_content(directory), directory / CATALOGUE_FILE)
    unused = set((directory / MODELS_DIRECTORY).glob("*"))
    for loaded in content.models.values():
        unused.discard(weights_path(directory, loaded.sha256))
    if unused:
        raise StateError(f"{min(unused)} is no model of the catalogue beside it")
    for _ in loaded_models(content, directory):
        pass


def _copy_records(source: Path, part: Path, is_live: bool) -> None:
    with lmdb.open(
        str(source), map_size=_MAX_MAP_BYTES, readonly=True, lock=is_live, readahead=False
    ) as environment:
        environment.copy(str(part), compact=True)


def _survey(directory: Path) -> dict[str, Any]:
    """Read a copy, all of it, and say what it holds."""
    store = StateStore(directory, read_only=True)
    try:
        arithmetics: Counter[str] = Counter()
        models: Counter[str] = Counter()
        numbers = {STREAMS: 0, SNAPSHOTS: 0}
        for table in numbers:
            for _, data in store.items(table):
                numbers[table] += 1
                with contextlib.suppress(RecordError):  # told below
                    record = decode_record(data)
                    arithmetics[record.arithmetic] += 1
                    models[f"{record.model} {record.fingerprint}"] += table == STREAMS
        found = list(damages(store))
    finally:
        store.close()
    return {
        "num_streams": numbers[STREAMS],
        "num_snapshots": numbers[SNAPSHOTS],
        "arithmetics": dict(arithmetics),
        "models": dict(models),
        "num_damages": len(found),
        "damages": found[:_MAX_DAMAGES],
    }


def _is_computed_here(arithmetic: str) -> bool:
    """Tell whether a server of this release may go on with it: a GPU's is judged by its server."""
    return arithmetic.startswith("cuda-") or arithmetic in cpu_arithmetics()


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _copy(source: Path, target: Path, num_bytes: int | None = None) -> None:
    """Copy a regular file, which is no link; of a number of bytes, if there should be so many."""
    with _open_regular(source) as file:
        if num_bytes is not None and os.fstat(file.fileno()).st_size != num_bytes:
            raise StateError(f"{source} is damaged: it has not {num_bytes} bytes")
        target.parent.mkdir(0o700, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as new:
            shutil.copyfileobj(file, new, _BUFFER_BYTES)


def _open_regular(path: Path) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise StateError(f"{path} is no regular file")
    return file


def _seal(path: Path) -> list[int | str]:
    """Bring a file to disk; return its length and SHA-256."""
    file: BinaryIO
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]


def _is_seal(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    num_bytes, digest = value
    is_digest = isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
    return type(num_bytes) is int and num_bytes >= 0 and is_digest


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finish(part: Path, target: Path) -> None:
    """Let a folder whose files are on disk appear under its name."""
    (part / "owner.lock").unlink(missing_ok=True)  # of who has read it
    for folder in (part, part / JOURNAL_DIRECTORY, part / MODELS_DIRECTORY):
        if folder.is_dir():
            sync_directory(folder)
    part.rename(target)
    sync_directory(target.parent)


def main(source: str, target: str, version: str, epoch: str) -> int:
    """Make a backup; say on stderr why there is none.

    Returns
    -------
    int
        0; 1 if there is none.
    """
    os.umask(0o077)
    os.nice(_NICENESS)
    try:
        _make(Path(source), Path(target), version, int(epoch))
    except (OSError, lmdb.Error, StateError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            where = "" if error.filename is None else f"{error.filename}: "
            reason = f"{where}{error.strerror}"
        print(f"no backup was made of {source} in {target}: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
