"""What the server tells of itself: `hello`, `stats`."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from streamrnn import __version__
from streamrnn_client.protocol import (
    DEFAULT_WINDOW,
    FEATURES,
    MAX_BATCH,
    MAX_WINDOW,
    PROTOCOL_VERSION,
    ErrorCode,
    ProtocolError,
)
from streamrnn_server.config import ServerConfig, UserLimits
from streamrnn_server.connections.connections import Connections
from streamrnn_server.control.about.busiest import busiest_streams
from streamrnn_server.control.about.calls import CallCounts
from streamrnn_server.control.about.diagnostics import Diagnostics
from streamrnn_server.control.about.stats import (
    ShardView,
    all_times,
    batch_totals,
    disk_stats,
    errors_by_code,
    latency_us,
    memory_parts,
    num_quarantined_now,
    shard_stats,
    times_us,
    total_counters,
)
from streamrnn_server.control.about.step_times import STEP_TIMES, step_times
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.table import ModelTable
from streamrnn_server.storage.replay import all_arithmetics
from streamrnn_server.storage.state_dir import StateDir

__all__ = ["About"]

# What `stats` adds up of all shards beside their counters.
_GAUGES = (
    "num_streams",
    "num_ready",
    "num_requests_in_flight",
    "memory_used_bytes",
    "unread_bytes",
    "asked_bytes",
)


class About:
    """Tells what the server is, and what it has done.

    Attributes
    ----------
    instance : str
        Tells this start of the server from every other.
    build_info : dict of str to str
        What serves, and how.
    calls : CallCounts
        Of what came to the control thread.
    """

    def __init__(
        self,
        config: ServerConfig,
        table: ModelTable,
        device: str,
        endpoints: Sequence[str],
        shards: Sequence[ShardView],
        log: EventLog,
        disk: StateDir | None,
        connections: Connections | None,
        diagnostics: Diagnostics | None,
        limits_of: Callable[[str], UserLimits],
    ) -> None:
        self.instance = secrets.token_hex(8)
        self.calls = CallCounts()
        self._config, self._table, self._device = config, table, device
        self._endpoints, self._shards = list(endpoints), shards
        self._log, self._disk, self._connections = log, disk, connections
        self._diagnostics, self._limits_of = diagnostics, limits_of
        self._usage = None if disk is None else disk.usage
        self._started_s = time.monotonic()
        self._arithmetic = all_arithmetics(each.arithmetic for each in table.served)
        self.build_info = {
            "version": __version__,
            "arithmetic": self._arithmetic,
            "precision": config.precision,
            "device": device,
            "durability": config.durability,
        }

    def hello(self) -> dict[str, Any]:
        """Return what a client has to know of its server."""
        config = self._config
        return {
            "protocol": PROTOCOL_VERSION,
            "server": __version__,
            "instance": self.instance,
            "durability": config.durability,
            "read_only": self._disk and self._disk.read_only,
            "arithmetic": self._arithmetic,
            "precision": config.precision,
            "device": self._device,
            "endpoints": self._endpoints,
            "num_shards": config.num_shards,
            "default_window": DEFAULT_WINDOW,
            "max_window": MAX_WINDOW,
            "max_message_bytes": config.max_message_bytes,
            "max_in_flight": config.max_in_flight,
            "max_batch": MAX_BATCH,
            "features": list(FEATURES),
            "models": self._table.names,
            "aliases": dict(self._table.aliases),
        }

    def stats_for(self, user: str, params: Sequence[Any]) -> dict[str, Any]:
        """Return the totals to who may see them, and to a user what is his own.

        Raises a `ProtocolError` if a part is asked for that there is not, or that he may not see.
        """
        config = self._config
        may_see = not config.has_users or user in config.admins
        if params:
            return self._part(params, may_see)
        if may_see:
            told = {"busiest": busiest_streams(self._shards, self._table.specs)}
            if self._diagnostics is not None:
                told["recorded"] = self._diagnostics.streams()
            return self.stats() | told
        usage = {}
        if self._usage is not None:
            usage["num_bytes_on_disk"] = self._usage.num_bytes(user)
            usage["max_bytes_on_disk"] = self._usage.max_bytes
        return {
            "server": __version__,
            "instance": self.instance,
            "uptime_s": time.monotonic() - self._started_s,
            "durability": config.durability,
            **({} if self._disk is None else {"read_only": self._disk.read_only}),
            "user": user,
            **self._budget_of(user),
            **usage,
        }

    def _part(self, params: Sequence[Any], may_see: bool) -> dict[str, Any]:
        """Return a part of `stats` that is told only to who asks for it."""
        if list(params) != [STEP_TIMES]:
            raise ProtocolError(
                ErrorCode.BAD_PARAMS, f"stats takes no parameter, or {STEP_TIMES!r} for that part"
            )
        if not may_see:
            raise ProtocolError(
                ErrorCode.FORBIDDEN, "times of steps are the administrators': --admin names them"
            )
        return {STEP_TIMES: step_times(self._shards), "durability": self._config.durability}

    def _budget_of(self, user: str) -> dict[str, int]:
        """Return what a user takes of the memory, and what he may take."""
        used = [shard.budget_of(user) for shard in self._shards]
        limits = self._limits_of(user)
        return {
            "num_streams": sum(each["num_streams"] for each in used),
            "max_streams": limits.max_streams,
            "num_bytes": sum(each["num_bytes"] for each in used),
            "max_bytes": limits.max_bytes,
            "max_steps_per_s": limits.max_steps_per_s,
        }

    def stats(self) -> dict[str, Any]:
        """Return what the server tells about itself.

        Returns
        -------
        dict
            Plain types; counters are named ``num_*``, units stand in names.
        """
        counters = total_counters(self._shards)
        counters["num_too_broken_to_answer"] += self.calls.num_too_broken
        counters["num_dropped_log_lines"] = self._log.num_dropped
        times = all_times(self._shards)
        num_steps = batch_totals(self._shards).num_steps.tolist()
        errors = Counter(errors_by_code(self._shards))
        for (_, code), number in self.calls.num_errors.copy().items():
            errors[code] += number
        shards = [
            shard_stats(shard, endpoint)
            for shard, endpoint in zip(self._shards, self._endpoints, strict=True)
        ]
        return {
            "server": __version__,
            "instance": self.instance,
            "uptime_s": time.monotonic() - self._started_s,
            "num_restarts": self._config.num_restarts,
            "durability": self._config.durability,
            **disk_stats(self._disk, self._shards),
            "max_streams": self._config.max_streams,
            **{name: sum(each[name] for each in shards) for name in _GAUGES},
            **({} if self._connections is None else self._connections.stats()),
            "memory_budget_bytes": self._config.memory_budget_bytes,
            "memory_parts_bytes": memory_parts(self._shards),
            **counters,
            "num_quarantined_now": num_quarantined_now(self._shards),
            "num_errors_internal": self._log.num_faults,
            "errors": dict(errors),
            "calls": dict(self.calls.num_calls),
            "latency_us": latency_us(times),
            "times_us": times_us(times),
            "models": {
                name: sum(each["num_open"].get(name, 0) for each in shards)
                for name in self._table.names
            },
            "aliases": dict(self._table.aliases),
            "steps": {name: num_steps[k] for name, k in dict(self._table.indices).items()},
            **({} if self._diagnostics is None else {"diagnostics": self._diagnostics.by_model()}),
            "shards": shards,
        }
