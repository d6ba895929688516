"""``streamrnn status``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from streamrnn.commands.printable import printable
from streamrnn_client.words import counted
from streamrnn_server.commands.answers import stats_of
from streamrnn_server.commands.connection import add_server, connected, keys_of
from streamrnn_server.config import format_bytes
from streamrnn_server.monitor.health import trouble

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_server(parser)
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Ask a server how it is and print what it says.

    Returns
    -------
    int
        0; 1 if something is wrong now, such as a disk that cannot be written.
    """
    with connected(args.address, keys_of(args)) as client:
        stats = stats_of(client, args.address)
    print(json.dumps(stats) if args.json else "\n".join(map(printable, _lines(stats))))
    return 1 if trouble(stats) else 0


def _lines(stats: dict[str, Any]) -> list[str]:
    """Put into words what matters: who, how much, how fast, and what went wrong."""
    if "user" in stats:
        return _lines_of_user(stats)
    uptime_s = max(stats["uptime_s"], 1e-9)
    current = [alias for alias in stats.get("aliases", {}).items() if alias[0] != alias[1]]
    models = ", ".join(f"{name} ({number} open)" for name, number in stats["models"].items())
    models += "".join(f"; new streams of {alias} get {name}" for alias, name in current)
    lines = [
        f"server      streamrnn {stats['server']}, instance {stats['instance']}, "
        f"up {stats['uptime_s']:.0f} s, durability {stats['durability']}{_restarts(stats)}",
        f"models      {models}",
        f"streams     {stats['num_streams']:,} of at most {stats['max_streams']:,}",
        f"memory      {format_bytes(stats['memory_used_bytes'])} of at most "
        f"{format_bytes(stats['memory_budget_bytes'])} for streams; made way: {_made_way(stats)}",
        f"work        {counted(stats['num_steps'], 'step')} in "
        f"{counted(stats['num_waves'], 'wave')}, {counted(stats['num_messages'], 'message')}, "
        f"{stats['num_messages'] / uptime_s:,.0f} a second",
    ]
    if "num_connections" in stats:
        lines.append(
            f"connections {stats['num_connections']:,} of at most {stats['max_connections']:,}"
        )
    if "read_only" in stats:
        lines.append(f"disk        {_disk(stats)}")
    latency = stats["latency_us"]
    if latency:
        told = ", ".join(f"{name} {value:,.0f}" for name, value in latency.items())
        lines.append(f"latency µs  {told} (inside the server, from receive to send)")
    lines += [
        f"shard {k}     {shard['endpoint']}: {counted(shard['num_streams'], 'stream')}, "
        f"{counted(shard['num_messages'], 'message')}"
        for k, shard in enumerate(stats["shards"])
    ]
    for name, told in stats.get("diagnostics", {}).items():
        lines += _lines_of_network(name, told)
    since_start = {
        name.removeprefix("num_").replace("_", " "): number
        for name, number in stats.items()
        if name.startswith(("num_errors", "num_dropped", "num_calls_ref", "num_too", "num_extra"))
        or name.startswith("num_refused")
        or name in ("num_quarantined", "num_late", "num_connections_cut")
    }
    now_and_before = [
        *trouble(stats),
        *(f"{name} {number:,}" for name, number in since_start.items() if number),
    ]
    lines.append(f"trouble     {', '.join(now_and_before) or 'none'}")
    return lines


def _lines_of_user(stats: dict[str, Any]) -> list[str]:
    """Put into words what a server tells a user who is no --admin."""
    on_disk = []
    if "num_bytes_on_disk" in stats:
        has, most = (format_bytes(stats[f"{name}_bytes_on_disk"]) for name in ("num", "max"))
        on_disk = [f"disk        {has} of at most {most}"]
    limits = []
    if stats.get("max_bytes"):
        has, most = (format_bytes(stats[f"{name}_bytes"]) for name in ("num", "max"))
        limits.append(f"states      {has} in memory of at most {most}")
    if stats.get("max_steps_per_s"):
        limits.append(f"steps       at most {stats['max_steps_per_s']:,} a second")
    return [
        f"server      streamrnn {stats['server']}, instance {stats['instance']}, "
        f"up {stats['uptime_s']:.0f} s, durability {stats['durability']}",
        f"user        {stats['user']}",
        f"streams     {stats['num_streams']:,} in memory of at most {stats['max_streams']:,}",
        *limits,
        *on_disk,
        f"trouble     {', '.join(trouble(stats)) or 'none'}",
    ]


def _lines_of_network(name: str, told: dict[str, Any]) -> list[str]:
    """Put into words what recorded streams of a model have shown."""
    lines = [f"network     {name}, of the last recordings ({counted(told['num_steps'], 'step')}):"]
    for layer in told["layers"]:
        parts = [f"layer {layer['layer'] + 1} ({layer['cell']})"]
        if layer["half_life_steps"] is not None:
            parts.append(f"half-life {layer['half_life_steps']:.3g} steps")
        if layer["saturated"] is not None:
            parts.append(f"{layer['saturated']:.1%} of the gates saturated")
        if layer["dead"]:
            parts.append(counted(round(layer["dead"]), "dead unit"))
        parts += [f"rms of {state} {value:.3g}" for state, value in layer["rms"].items()]
        lines.append(f"            {', '.join(parts)}")
    drift = "inputs are not compared, the model keeps no quantiles of its training's"
    if told["beyond"] is not None:
        drift = f"{told['beyond']:.1%} of the inputs beyond all of the training"
    return [*lines, f"            {drift}; {_warmup(told['warmup'])}"]


def _warmup(found: dict[str, Any] | None) -> str:
    if found is None:
        return "whether the warm-up holds cannot be told yet"
    promised = f"the warm-up of {counted(found['promised_steps'], 'step')}"
    if found["holds"]:
        return f"{promised} holds (outputs of new streams off by {found['distance']:.1%} then)"
    needed = found["needed_steps"]
    needs = "more than was recorded" if needed is None else f"{needed:,}"
    off = "" if found["distance"] is None else f", off by {found['distance']:.0%} of their spread"
    return f"{promised} DOES NOT HOLD: new streams need {needs}{off}"


def _restarts(stats: dict[str, Any]) -> str:
    number = stats.get("num_restarts")
    return f", restarted {counted(number, 'time')} after a crash" if number else ""


def _disk(stats: dict[str, Any]) -> str:
    """Say whether the disk takes what it is given, and how far it is behind."""
    reason = stats["read_only"]
    state = "can be written" if reason is None else f"CANNOT BE WRITTEN ({reason})"
    number = stats.get("num_streams_on_disk")
    held = "" if number is None else f", {counted(number, 'stream')} on it"
    last = "no commit yet"
    if stats["num_commits"]:
        last = f"last commit in {stats['last_commit_us'] / 1e3:,.1f} ms"
        if "since_last_commit_s" in stats:  # servers of before do not say it
            last += f", {stats['since_last_commit_s']:.1f} s ago"
    behind = stats.get("num_not_on_disk")
    lag = "" if behind is None else f"; changes that are not on it: {behind:,}"
    return f"{state}{held}; {last}{lag}"


def _made_way(stats: dict[str, Any]) -> str:
    """Say how many streams left memory, and why."""
    reasons = {
        "num_spilled_idle": "idle",
        "num_spilled_for_room": "for --max-streams",
        "num_spilled_for_memory": "for --memory-budget",
        "num_evicted_idle": "idle and closed",
        "num_expired": "expired",
    }
    told = [f"{stats[name]:,} {why}" for name, why in reasons.items() if stats.get(name)]
    return ", ".join(told) or "none"
