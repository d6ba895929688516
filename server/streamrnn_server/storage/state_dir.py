"""The state directory of a running server: the store, its clock, and the thread that writes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import zmq

from streamrnn.errors import StartError, StoreError
from streamrnn.kernels.cpu.program import Program
from streamrnn.model.model import Model
from streamrnn.state.store import STREAMS, StateStore
from streamrnn_server.config import ServerConfig
from streamrnn_server.event_log import EventLog
from streamrnn_server.shard.checkpoint.packing import Templates
from streamrnn_server.storage.expiry import Expiry
from streamrnn_server.storage.record_lookup import ServedModel
from streamrnn_server.storage.usage import DiskUsage
from streamrnn_server.storage.writer import CheckpointWriter

__all__ = ["StateDir", "served_models", "templates_of"]

_EPOCH_SHIFT = 32


def served_models(
    models: Mapping[str, Model], programs: Mapping[str, Program]
) -> list[ServedModel]:
    """Return what records must fit."""
    return [
        ServedModel(name, model.fingerprint, program.row_bytes, 4 * program.spec.output_size)
        for (name, model), program in zip(models.items(), programs.values(), strict=True)
    ]


def templates_of(models: Sequence[ServedModel], arithmetic: str) -> Templates:
    """Return what the records of each model have in common."""
    return Templates([(model.name, model.fingerprint) for model in models], arithmetic)


class StateDir:
    """A state directory in use.

    Attributes
    ----------
    store : StateStore
    expiry : Expiry
    saver : CheckpointWriter
    usage : DiskUsage or None
        Where there are users.

    Raises
    ------
    StartError
        If the directory cannot be used.
    """

    def __init__(
        self,
        config: ServerConfig,
        models: Mapping[str, Model],
        programs: Mapping[str, Program],
        arithmetic: str,
        sockets: Sequence[zmq.Socket[bytes]],
        log: EventLog,
    ) -> None:
        assert config.state_dir is not None
        try:
            self.store = StateStore(config.state_dir, config.max_state_bytes)
        except StoreError as error:
            raise StartError(str(error)) from error
        self.usage: DiskUsage | None = None
        if config.has_users:
            disk_bytes = shutil.disk_usage(config.state_dir).total
            max_bytes = config.user_disk_bytes or disk_bytes * config.user_share // 100
            self.usage = DiskUsage(self.store, max_bytes)
        self.expiry = Expiry(self.store.clock_s, config.time_to_live_s)
        templates = templates_of(served_models(models, programs), arithmetic)
        self.saver = CheckpointWriter(self.store, templates, sockets, self.expiry, log, self.usage)

    @property
    def first_incarnation(self) -> int:
        """What the shards count incarnations from, above all that were before."""
        return self.store.epoch << _EPOCH_SHIFT

    def stats(self) -> dict[str, Any]:
        """Return what there is to say.

        Returns
        -------
        dict
            Plain types.
        """
        try:
            num_streams: int | None = self.store.num_items(STREAMS)
        except StoreError:  # the disk has failed just now; `read_only` says how
            num_streams = None
        now_s, began_s = time.monotonic(), self.saver.began_at_s
        return {
            "read_only": self.saver.read_only,
            "num_streams_on_disk": num_streams,
            "num_commits": self.saver.num_commits,
            "num_bytes_written": self.saver.num_bytes,
            "last_commit_us": round(self.saver.last_commit_s * 1e6),
            "since_last_commit_s": now_s - self.saver.committed_at_s,
            "commit_under_way_s": None if began_s is None else now_s - began_s,
            "num_expired": self.expiry.num_expired,
        }

    def close(self) -> None:
        """End the thread and let go of the directory, after the shards have ended."""
        self.saver.stop()
        self.store.close()
