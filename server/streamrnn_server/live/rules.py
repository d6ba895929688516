"""What may be done with models under live streams, and the parameters that ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from streamrnn.kernels.cpu.program import Program
from streamrnn.model.io_spec import InputSpec
from streamrnn.model.spec import ModelSpec
from streamrnn.state.catalogue import POLICIES, Content, SwapRule, name_fault
from streamrnn_client.protocol import ErrorCode, ProtocolError
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.table import ModelTable, family_of
from streamrnn_server.shard.model_memory import MAX_LOADED_ROW_BYTES, MAX_LOADED_VALUES, row_size

__all__ = [
    "apply_content",
    "can_carry",
    "check_shadow",
    "check_size",
    "check_swap",
    "need_served",
    "take_options",
]

_MAX_SHADOW_STREAMS, _MAX_SHADOW_STEPS, _MAX_SHADOW_S = 1024, 4096, 3600


def _bad(text: str) -> ProtocolError:
    return ProtocolError(ErrorCode.BAD_PARAMS, text)


def _check_name(value: Any) -> None:
    fault = name_fault(value) if isinstance(value, str) else "a model's name is a text"
    if fault is not None:
        raise _bad(f"{str(value)[:64]!r}: {fault}")


def _check_file(value: Any) -> None:
    if not isinstance(value, str):
        raise _bad("file must be the name of a file in --models-dir")


def _check_share(value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise _bad("share must be a number from 0 to 1: the part of new streams that get it")


def _check_policy(value: Any) -> None:
    if value not in POLICIES:
        raise _bad(f"streams must be one of {', '.join(POLICIES)}")


def _check_whole(name: str, most: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if type(value) is not int or not 1 <= value <= most:
            raise _bad(f"{name} must be a whole number from 1 to {most:,}")

    return check


def _check_seconds(value: Any) -> None:
    if type(value) not in (int, float) or not 0 < value <= _MAX_SHADOW_S:
        raise _bad(f"seconds must be a number above 0 and at most {_MAX_SHADOW_S:,}")


def _check_stop(value: Any) -> None:
    if value is not True:
        raise _bad("stop must be true, or not be there")


# Of each action: what must be said, and what may be.
_Checks = dict[str, Callable[[Any], None]]
_OPTIONS: Mapping[str, tuple[_Checks, _Checks]] = {
    "load": ({"name": _check_name}, {"file": _check_file}),
    "alias": ({"name": _check_name}, {"share": _check_share}),
    "swap": ({"name": _check_name, "to": _check_name}, {"streams": _check_policy}),
    "unload": ({"name": _check_name}, {}),
    "shadow": (
        {},
        {
            "name": _check_name,
            "to": _check_name,
            "streams": _check_whole("streams", _MAX_SHADOW_STREAMS),
            "steps": _check_whole("steps", _MAX_SHADOW_STEPS),
            "seconds": _check_seconds,
            "stop": _check_stop,
        },
    ),
}


def take_options(params: list[Any]) -> tuple[str, dict[str, Any]]:
    """Return an action and its options, or raise `ProtocolError` (``bad_params``)."""
    actions = ", ".join(_OPTIONS)
    if len(params) != 2 or not isinstance(params[0], str) or params[0] not in _OPTIONS:
        raise _bad(f"model takes [action, options]; the action is one of {actions}")
    action, options = params
    needed, allowed = _OPTIONS[action]
    checks = needed | allowed
    if not isinstance(options, dict) or not needed.keys() <= options.keys() <= checks.keys():
        raise _bad(f"the options of {action} are a map of {', '.join(checks)}")
    for name, value in options.items():
        checks[name](value)
    return action, options


def need_served(table: ModelTable, name: str) -> None:
    """Raise `ProtocolError` if a version is not served."""
    if name not in table.indices:
        raise ProtocolError(ErrorCode.UNKNOWN_MODEL, model=name, models=table.names)


def can_carry(old: ModelSpec, new: ModelSpec) -> bool:
    """Tell whether the state of one model can go on as another's: all but weights is the same.

    What a model was trained on, and how long it takes to warm up, makes no difference.
    """
    return replace(old, training={}, warmup_steps=0) == replace(new, training={}, warmup_steps=0)


def check_size(name: str, program: Program, max_kept: int) -> None:
    """Raise `ProtocolError` if a model is larger than what a running server has space for."""
    most = max(program.spec.num_inputs, program.spec.output_size)
    num_bytes = row_size(program, max_kept)
    if num_bytes > MAX_LOADED_ROW_BYTES or most > MAX_LOADED_VALUES:
        raise _bad(
            f"{name!r} has {most} inputs or outputs and {num_bytes} bytes of state and history; "
            f"while a server runs, models of at most {MAX_LOADED_VALUES} and "
            f"{MAX_LOADED_ROW_BYTES} bytes are loaded: start it with this one"
        )


def check_swap(
    table: ModelTable, name: str, to: str, streams: str, is_durable: bool, device: str
) -> None:
    """Raise `ProtocolError` if the streams of one version cannot be swapped to another so."""
    if streams != "keep" and device != "cpu":
        raise ProtocolError(
            ErrorCode.NOT_SUPPORTED, "streams that a GPU computes keep their version"
        )
    if streams != "keep" and not is_durable:
        raise ProtocolError(
            ErrorCode.NOT_SUPPORTED,
            "a stream is swapped with its record, and the server keeps none: start it with "
            "--state-dir, or let streams keep their version (keep)",
        )
    fault = _swap_fault(table, name, to, streams)
    if fault is not None:
        raise _bad(fault)
    if streams == "replay" and not table.max_kept_of(name):
        raise ProtocolError(
            ErrorCode.NOT_SUPPORTED,
            f"no inputs are kept of the streams of {name!r}, so none can be replayed: start the "
            f"server with --history {family_of(name)}=N, or swap with reset",
        )


def _swap_fault(table: ModelTable, name: str, to: str, streams: str) -> str | None:
    """Return why streams of one version cannot go on as those of another, if they cannot.

    What a shard copies from the one to the other has the size that it has in both.
    """
    if name == to or family_of(name) != family_of(to):
        return f"{name!r} and {to!r} are not two versions of one model (NAME@VERSION)"
    old, new = (table.models[table.indices[each]].spec for each in (name, to))
    if streams == "keep":
        return None
    if old.num_inputs != new.num_inputs or old.output_size != new.output_size:
        return (
            f"{name!r} has {old.num_inputs} inputs and {old.output_size} outputs, {to!r} has "
            f"{new.num_inputs} and {new.output_size}: let streams keep their version"
        )
    if streams == "carry" and not can_carry(old, new):
        return (
            f"{name!r} and {to!r} are described differently (layers, inputs, outputs, transforms "
            "or vocabularies): a state cannot be carried over; swap with reset, or keep"
        )
    if streams != "replay":
        return None
    differing = [
        before.name
        for before, after in zip(old.inputs, new.inputs, strict=False)
        if _as_it_comes(before) != _as_it_comes(after)
    ]
    if differing or len(old.inputs) != len(new.inputs):
        return (
            f"an input of {name!r} means something else in {to!r} (name, unit, kind, categories, "
            f"shape or origin of {', '.join(differing[:8]) or 'those behind the last'}): what was "
            "kept cannot be replayed; swap with reset, or keep"
        )
    return None


def _as_it_comes(item: InputSpec) -> tuple[Any, ...]:
    """Return what numbers mean that a client sends; transforms are each version's own."""
    return item.name, item.unit, item.kind, item.categories, item.shape, item.origin


def check_shadow(table: ModelTable, name: str, to: str) -> None:
    """Raise `ProtocolError` if the outputs of two models cannot be compared for the same inputs."""
    need_served(table, name)
    need_served(table, to)
    if name == to:
        raise _bad(f"{name!r} would be its own shadow: name two versions")
    old, new = (table.models[table.indices[each]].spec for each in (name, to))
    if old.is_token != new.is_token:
        raise _bad(f"one of {name!r} and {to!r} takes tokens, the other one numbers")
    if old.num_inputs != new.num_inputs or old.output_size != new.output_size:
        raise _bad(
            f"{name!r} has {old.num_inputs} inputs and {old.output_size} outputs, {to!r} has "
            f"{new.num_inputs} and {new.output_size}: there is nothing to compare"
        )


def apply_content(table: ModelTable, content: Content, log: EventLog) -> None:
    """Take over what a catalogue says, as far as what it names is served and fits.

    A version that is named at the start may be another model than it was, and a catalogue may come
    with a backup.
    """
    for family, name in content.aliases.items():
        if name in table.indices and family_of(name) == family:
            table.aliases[family] = name
        elif family in table.families:
            text = "an alias means a version that is not served: it means another one now"
            log.write("warning", text, alias=family, version=name, now=table.aliases[family])
    for family, share in content.shares.items():
        if share.name in table.indices and family_of(share.name) == family:
            table.shares[family] = share
    for name, rule in content.swaps.items():
        if name not in table.indices or rule.to not in table.indices:
            continue
        fault = _swap_fault(table, name, rule.to, rule.policy)
        if fault is None and _leads_to(table, rule, name):
            fault = f"{rule.to!r} is swapped to {name!r} itself"
        if fault is not None:
            text = "streams are swapped to a version no more, which they do not fit"
            log.write("warning", text, model=name, to=rule.to, reason=fault)
            continue
        table.swaps[name] = rule
        if rule.policy == "replay" and not table.max_kept_of(name):
            text = "no inputs are kept any more (--history): streams that are swapped with "
            text += "replay begin with those that they have, or anew"
            log.write("warning", text, model=name, to=rule.to)


def _leads_to(table: ModelTable, rule: SwapRule, name: str) -> bool:
    """Tell whether a rule and those behind it lead back: such streams would never have a step."""
    after: SwapRule | None = rule
    while after is not None and after.to != name:
        after = table.swaps.get(after.to)
    return after is not None
