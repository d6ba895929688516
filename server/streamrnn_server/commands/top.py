"""``streamrnn top``: what a running server does now."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamrnn.commands.printable import printable
from streamrnn.errors import ServerError
from streamrnn_client import Client
from streamrnn_client.words import counted
from streamrnn_server.commands.answers import stats_of
from streamrnn_server.commands.connection import add_server, connected, keys_of
from streamrnn_server.config import format_bytes
from streamrnn_server.monitor.health import trouble

__all__ = ["Change", "configure", "picture", "run"]

_NUM_BUSIEST = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_server(parser)
    parser.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="S", help="between pictures (%(default)s)"
    )
    parser.add_argument(
        "--count",
        type=int,
        metavar="N",
        help="end after so many pictures (without end on a terminal, 1 elsewhere)",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.01 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.01 to 3600 s")
    return value


def run(args: argparse.Namespace) -> int:
    """Show pictures until Ctrl-C, or as many as are asked for.

    Returns
    -------
    int
        0.

    Raises
    ------
    ServerError
        If the server does not tell these numbers to this user.
    """
    console = Console()
    count = args.count or (math.inf if console.is_terminal else 1)
    with (
        contextlib.suppress(KeyboardInterrupt),
        connected(args.address, keys_of(args)) as client,
        Live(console=console, auto_refresh=False, screen=console.is_terminal) as live,
    ):
        before, before_s = _ask(client, args.address), time.monotonic()
        while count > 0:
            time.sleep(args.interval)
            now, now_s = _ask(client, args.address), time.monotonic()
            live.update(picture(Change(before, now, now_s - before_s)), refresh=True)
            before, before_s = now, now_s
            count -= 1
    return 0


def _ask(client: Client, address: str) -> dict[str, Any]:
    stats = stats_of(client, address)
    if "user" in stats:
        raise ServerError(
            f"the server tells these numbers to its administrators alone, and {stats['user']!r} is "
            "none (streamrnn serve --admin)"
        )
    return stats


class Change:
    """What has happened between two answers of one server.

    Parameters
    ----------
    before, now : mapping
        What `stats` told. If the server was started again in between, all of ``now`` is new.
    passed_s : float
        The time between them.
    """

    def __init__(self, before: Mapping[str, Any], now: Mapping[str, Any], passed_s: float) -> None:
        self.now = now
        self._before = before if before.get("instance") == now.get("instance") else {}
        self._passed_s = passed_s if self._before else max(now.get("uptime_s", 0.0), 1e-3)

    def rate(self, name: str) -> float:
        """Return how much a counter grows a second."""
        return (self.now.get(name, 0) - self._before.get(name, 0)) / self._passed_s

    def rates(self, name: str) -> dict[str, float]:
        """Return the same of each counter of a map."""
        before = self._before.get(name, {})
        return {
            key: (value - before.get(key, 0)) / self._passed_s
            for key, value in self.now.get(name, {}).items()
        }

    def shard_rate(self, k: int, name: str) -> float:
        """Return how much a shard's counter grows a second."""
        before = self._before["shards"][k][name] if k < len(self._before.get("shards", ())) else 0
        return float(self.now["shards"][k][name] - before) / self._passed_s

    def quantile_us(self, share: float) -> float | None:
        """Return within which time a share of the requests was answered; None without any."""
        before = dict(map(tuple, self._before.get("times_us", ())))
        times = [(end, number - before.get(end, 0)) for end, number in self.now.get("times_us", ())]
        rank = share * sum(number for _, number in times)
        for end, number in times:
            rank -= number
            if rank <= 0 < number:
                return float(end)
        return None


def picture(change: Change) -> RenderableType:
    """Return what is shown."""
    return Group(_summary(change), _models(change), _shards(change), _busiest(change))


def _summary(change: Change) -> RenderableType:
    now = change.now
    p50, p99 = (_us(change.quantile_us(share)) for share in (0.5, 0.99))
    errors = {code: rate for code, rate in change.rates("errors").items() if rate}
    parts = now.get("memory_parts_bytes", {})
    lines = {
        "server": f"streamrnn {now['server']}, instance {now['instance']}, "
        f"up {now['uptime_s']:,.0f} s, durability {now['durability']}",
        "steps": f"{change.rate('num_steps'):,.0f} a second, in batches of "
        f"{change.rate('num_steps') / max(change.rate('num_waves'), 1e-9):,.1f}",
        "messages": f"{change.rate('num_messages'):,.0f} a second, p50 {p50}, p99 {p99}",
        "streams": f"{now['num_streams']:,} in memory of at most {now['max_streams']:,}, "
        f"{now.get('num_ready', 0):,} at work; "
        f"{counted(now.get('num_connections', 0), 'connection')}",
        "memory": f"{format_bytes(now['memory_used_bytes'])} of at most "
        f"{format_bytes(now['memory_budget_bytes'])}: "
        + ", ".join(f"{name} {format_bytes(value)}" for name, value in parts.items()),
        "errors": ", ".join(f"{code} {rate:,.1f}/s" for code, rate in errors.items()) or "none",
    }
    if "num_not_on_disk" in now:
        lines["disk"] = (
            f"{counted(now['num_not_on_disk'], 'changed stream')}, the oldest for "
            f"{now.get('checkpoint_lag_s', 0):.1f} s; "
            f"{format_bytes(change.rate('num_bytes_written'))}/s"
        )
    lines["trouble"] = ", ".join(trouble(now)) or "none"
    table = Table.grid(padding=(0, 2))
    for name, line in lines.items():
        table.add_row(Text(name, "bold"), Text(printable(line)))
    return table


def _models(change: Change) -> RenderableType:
    steps = change.rates("steps")
    rows = [
        (name, f"{number:,}", f"{steps.get(name, 0):,.0f}")
        for name, number in change.now["models"].items()
    ]
    return _table(("model", "open", "steps/s"), rows)


def _shards(change: Change) -> RenderableType:
    rows = [
        (
            f"{k} {shard['endpoint']}",
            f"{shard['num_streams']:,}",
            f"{shard.get('num_requests_in_flight', 0):,}",
            f"{change.shard_rate(k, 'num_messages'):,.0f}",
            f"{change.shard_rate(k, 'num_steps'):,.0f}",
        )
        for k, shard in enumerate(change.now["shards"])
    ]
    return _table(("shard", "streams", "in flight", "messages/s", "steps/s"), rows)


def _busiest(change: Change) -> RenderableType:
    rates = [change.shard_rate(k, "num_steps") for k in range(len(change.now["shards"]))]
    found = [(each["share"] * rates[each["shard"]], each) for each in change.now.get("busiest", ())]
    found.sort(key=lambda pair: -pair[0])
    rows = [
        (str(each["stream"]), each["model"], f"{each['last_seq']:,}", f"{rate:,.0f}")
        for rate, each in found[:_NUM_BUSIEST]
    ]
    if not rows:
        return _table(("busiest streams",), [("none has made a step in this time",)])
    return _table(("busiest streams", "model", "last step", "about steps/s"), rows)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table; what came from outside moves no cursor and is no markup."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, title in enumerate(titles):
        is_text = k == 0 or title == "model"
        table.add_column(title, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _us(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} µs" if value < 10_000 else f"{value / 1e3:,.1f} ms"
