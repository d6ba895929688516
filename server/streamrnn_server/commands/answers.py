"""What servers answer to commands, checked before anything of it is used or shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamrnn.errors import ServerError

__all__ = [
    "Shape",
    "check",
    "is_bytes",
    "is_error",
    "is_flag_or_nil",
    "is_list",
    "is_map",
    "is_number",
    "is_plain",
    "is_text",
    "is_text_or_nil",
    "of_columns",
    "of_fields",
    "or_nil",
    "stats_of",
]

Shape = Callable[[Any], bool]
_NUMBERS = ("num_", "max_", "memory_budget_", "memory_used_", "since_", "last_", "uptime_")
_NUMBERS_OR_NIL = ("commit_under_way_s", "num_streams_on_disk")


def is_number(value: Any) -> bool:
    """Tell whether it is a number."""
    return type(value) in (int, float)


def is_plain(value: Any, depth: int = 16) -> bool:
    """Tell whether it can be written as JSON."""
    if isinstance(value, list) and depth:
        return all(is_plain(each, depth - 1) for each in value)
    if isinstance(value, dict) and depth:
        return all(isinstance(key, str) for key in value) and is_plain([*value.values()], depth)
    return value is None or isinstance(value, bool | int | float | str)


def is_text(value: Any) -> bool:
    """Tell whether it is a str."""
    return isinstance(value, str)


def is_flag_or_nil(value: Any) -> bool:
    """Tell whether it is a bool, or absent."""
    return value is None or isinstance(value, bool)


def is_text_or_nil(value: Any) -> bool:
    """Tell whether it is a str, or absent."""
    return value is None or isinstance(value, str)


def is_bytes(value: Any) -> bool:
    """Tell whether it is a bin."""
    return isinstance(value, bytes)


def is_error(value: Any) -> bool:
    """Tell whether it is nil, or ``[code, message, detail]``."""
    return value is None or of_columns(is_text, is_text, lambda detail: True)(value)


def is_list(of: Shape) -> Shape:
    """Return what tells whether it is a list of such values."""
    return lambda value: isinstance(value, list) and all(map(of, value))


def is_map(of: Shape) -> Shape:
    """Return what tells whether it is a map of texts to such values."""
    return lambda value: (
        isinstance(value, dict) and all(map(is_text, value)) and all(map(of, value.values()))
    )


def of_columns(*of: Shape) -> Shape:
    """Return what tells whether it is a list of so many values, each of its shape."""
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(of)
        and all(is_right(each) for is_right, each in zip(of, value, strict=True))
    )


def of_fields(needed: Mapping[str, Shape], others: Mapping[str, Shape] | None = None) -> Shape:
    """Return what tells whether it is a map that has all fields, and others in their shape."""
    return lambda value: (
        isinstance(value, dict)
        and all(name in value and is_right(value[name]) for name, is_right in needed.items())
        and all(is_right(value[name]) for name, is_right in (others or {}).items() if name in value)
    )


def or_nil(of: Shape) -> Shape:
    """Return what tells whether it is nil, or of a shape."""
    return lambda value: value is None or of(value)


_SHARD = of_fields(
    {
        "endpoint": is_text,
        **dict.fromkeys(("num_streams", "num_messages", "num_steps"), is_number),
    },
    {"num_requests_in_flight": is_number},
)
_LAYER = of_fields(
    {
        "layer": is_number,
        "cell": is_text,
        "half_life_steps": or_nil(is_number),
        "saturated": or_nil(is_number),
        "dead": or_nil(is_number),
        "rms": is_map(is_number),
    }
)
_WARMUP = of_fields(
    {
        "promised_steps": is_number,
        "holds": lambda value: isinstance(value, bool),
        "needed_steps": or_nil(is_number),
        "distance": or_nil(is_number),
    }
)
_NETWORK = of_fields(
    {
        "num_steps": is_number,
        "layers": is_list(_LAYER),
        "beyond": or_nil(is_number),
        "warmup": or_nil(_WARMUP),
    }
)
_BUSY_STREAM = of_fields(
    {
        "stream": lambda value: isinstance(value, str | int),
        "model": is_text,
        **dict.fromkeys(("share", "shard", "last_seq"), is_number),
    }
)
_OTHERS: Mapping[str, Shape] = {
    "read_only": is_text_or_nil,
    "aliases": is_map(is_text),
    "steps": is_map(is_number),
    "errors": is_map(is_number),
    "memory_parts_bytes": is_map(is_number),
    "times_us": is_list(of_columns(is_number, is_number)),
    "busiest": is_list(_BUSY_STREAM),
    "diagnostics": is_map(_NETWORK),
}
_NAMES = dict.fromkeys(("server", "instance", "durability"), is_text)
_OF_USER = of_fields(
    {
        **_NAMES,
        "user": is_text,
        **dict.fromkeys(("uptime_s", "num_streams", "max_streams"), is_number),
    },
    _OTHERS,
)
_OF_SERVER = of_fields(
    {
        **_NAMES,
        "models": is_map(is_number),
        "shards": is_list(_SHARD),
        "latency_us": is_map(is_number),
        **dict.fromkeys(("uptime_s", "num_streams", "max_streams"), is_number),
        **dict.fromkeys(("memory_used_bytes", "memory_budget_bytes"), is_number),
        **dict.fromkeys(("num_steps", "num_waves", "num_messages"), is_number),
    },
    _OTHERS,
)


def check(value: Any, is_right: Shape, what: str) -> Any:
    """Return an answer that has its shape; ``what`` names it, and who gave it.

    Raises
    ------
    ServerError
        If it has another one.
    """
    if not is_right(value):
        raise ServerError(
            f"{what} is not what a server of this version answers: is it another program, or of "
            "another version?"
        )
    return value


def stats_of(client: Any, address: str) -> dict[str, Any]:
    """Ask a server for its `stats`; all numbers of it are numbers.

    Raises
    ------
    ServerError
        If that is not what came.
    """
    what = f"the answer of {address} to stats"
    stats = check(client.call("stats"), is_plain, what)
    is_of_user = isinstance(stats, dict) and "user" in stats
    check(stats, _OF_USER if is_of_user else _OF_SERVER, what)
    for name, value in stats.items():
        is_right = or_nil(is_number) if name in _NUMBERS_OR_NIL else is_number
        if name.startswith(_NUMBERS) or name in _NUMBERS_OR_NIL:
            check(value, is_right, f"{name} in {what}")
    num_shards = len(stats.get("shards", ()))
    for each in stats.get("busiest", ()):
        check(each["shard"], lambda k: type(k) is int and 0 <= k < num_shards, what)
    found: dict[str, Any] = stats
    return found
