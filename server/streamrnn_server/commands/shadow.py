"""``streamrnn model shadow``: compare two versions on the streams of a running server."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from streamrnn.errors import ServerError
from streamrnn_client import Client
from streamrnn_client.errors import StreamRNNClientError
from streamrnn_client.words import counted
from streamrnn_server.commands.answers import (
    check,
    is_list,
    is_number,
    is_plain,
    is_text,
    is_text_or_nil,
    of_fields,
    or_nil,
)

__all__ = ["configure_shadow", "shadow", "shadow_lines"]

_ASK_EVERY_S = 0.5
_GOING = ("recording", "comparing")
_MAX_LINES = 16  # outputs
_OUTPUT = of_fields(
    {
        "name": is_text,
        "unit": is_text_or_nil,
        **dict.fromkeys(("mean", "max"), is_number),
        **dict.fromkeys(("mean_by_spread", "max_by_spread", "spread", "shift"), or_nil(is_number)),
    },
    {"same_side": is_number},
)
_MODE = {
    "num_steps": is_number,
    "num_not_finite": of_fields(dict.fromkeys(("old", "new"), is_number)),
    "same_class": or_nil(is_number),
    "outputs": is_list(_OUTPUT),
    "num_outputs": is_number,
}
_RUN = of_fields(
    {
        **dict.fromkeys(("state", "name", "to"), is_text),
        "reason": is_text_or_nil,
        "same_inputs": lambda value: isinstance(value, bool),
        "carry": or_nil(of_fields(_MODE)),
        "reset": of_fields({**_MODE, "warmup_steps": is_number, "warmup": of_fields(_MODE)}),
        **dict.fromkeys(("streams", "seconds", "elapsed_s"), is_number),
        **dict.fromkeys(("num_streams", "num_recorded", "num_refused"), is_number),
    }
)


def configure_shadow(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the action."""
    parser.add_argument("name", metavar="OLD", nargs="?", help="version whose streams are recorded")
    parser.add_argument(
        "to", metavar="NEW", nargs="?", help="version that gets the same inputs, in the server"
    )
    amounts = {
        "streams": (int, "N", "streams to compare, each once (8)"),
        "steps": (int, "N", "of each stream at most (256, or twice OLD's warm-up)"),
        "seconds": (float, "S", "end after so long with what is recorded by then (60)"),
    }
    for name, (kind, metavar, text) in amounts.items():
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text, dest=f"of_{name}")
    parser.add_argument(
        "--stop", action="store_true", help="end the one that goes on, and print what it has"
    )


def shadow(client: Client, args: argparse.Namespace) -> dict[str, Any]:
    """Begin a shadow run and wait for its end; Ctrl-C ends it with what it has.

    Without versions return what goes on, or was the last.

    Raises
    ------
    ServerError
        If nothing came of it.
    """
    options = {key: value for key in ("name", "to") if (value := getattr(args, key)) is not None}
    for key in ("streams", "steps", "seconds"):
        if (value := getattr(args, f"of_{key}")) is not None:
            options[key] = value
    if args.stop:
        options["stop"] = True
    told = _ask(client, args.address, options)
    is_ours = bool(options) and not args.stop
    try:
        while is_ours and told["state"] in _GOING:
            _show(told)
            time.sleep(_ASK_EVERY_S)
            told = _ask(client, args.address, {})
    except (KeyboardInterrupt, StreamRNNClientError) as error:
        if not isinstance(error, KeyboardInterrupt):
            raise
        told = _ask(client, args.address, {"stop": True})
    finally:
        _show(None)
    if is_ours and told["state"] == "failed":
        raise ServerError(told["reason"])
    return told


def _ask(client: Client, address: str, options: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = check(
        client.call("model", ["shadow", options]),
        lambda told: is_plain(told) and (told == {"state": None} or _RUN(told)),
        f"the answer of {address} to model shadow",
    )
    return told


def _show(told: dict[str, Any] | None) -> None:
    """Write how far it is over the line before, on a terminal; None: clear that line."""
    if sys.stderr.isatty():
        text = "" if told is None else _progress(told)
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _progress(told: dict[str, Any]) -> str:
    steps = told["reset"]["num_steps"] + told["reset"]["warmup"]["num_steps"]
    streams = counted(told["streams"], "stream")
    return (
        f"{told['state']}: {told['num_recorded']} of {streams} recorded, "
        f"{counted(steps, 'step')} compared, {told['elapsed_s']:.0f} s of {told['seconds']:g}"
    )


def shadow_lines(told: dict[str, Any]) -> list[str]:
    """Put into words what a shadow run has found."""
    if told["state"] is None:
        return ["no shadow run since the server's start"]
    old, new, reset = told["name"], told["to"], told["reset"]
    if told["state"] in _GOING:
        lines = [f"{new} beside {old}, {_progress(told)}"]
    else:
        steps = reset["num_steps"] + reset["warmup"]["num_steps"]
        lines = [
            f"{new} beside {old}: {counted(told['num_streams'], 'stream')}, "
            f"{counted(steps, 'step')}, "
            f"{told['elapsed_s']:.0f} s, {told['state']}"
        ]
    if told["reason"] and told["state"] == "failed":
        return [*lines, told["reason"]]
    if told["num_refused"]:
        refused = counted(told["num_refused"], "stream")
        lines.append(f"{refused} with an input that {new} refuses: compared up to there")
    if not told["same_inputs"]:
        lines.append("their inputs are described differently; both got the same numbers")
    if told["carry"] is None:
        lines.append("carry: not possible, for more than their weights differs")
    else:
        lines += _of_mode("carry, the state goes on", told["carry"], told)
    warmup_steps = reset["warmup_steps"]
    if not warmup_steps:
        return lines + _of_mode(f"reset, from nothing ({new} names no warm-up)", reset, told)
    title = f"reset, from nothing, after the {warmup_steps:,} steps of {new}'s warm-up"
    lines += _of_mode(title, reset, told)
    return lines + _of_mode("reset, in the steps of its warm-up", reset["warmup"], told)


def _of_mode(title: str, facts: dict[str, Any], told: dict[str, Any]) -> list[str]:
    lines = [f"{title}: {counted(facts['num_steps'], 'step')}"]
    for side, name in (("old", told["name"]), ("new", told["to"])):
        number = facts["num_not_finite"][side]
        if number:
            lines.append(
                f"  {counted(number, 'step')} left out: an output of {name} is NaN or infinite"
            )
    if facts["same_class"] is not None:
        lines.append(f"  same most likely class in {facts['same_class']:.2%} of them")
    outputs = facts["outputs"]
    lines += [_of_output(output, told["name"]) for output in outputs[:_MAX_LINES]]
    num_more = facts["num_outputs"] - _MAX_LINES
    if outputs and num_more > 0:
        lines.append(
            f"  and {counted(num_more, 'output')} more (--json has those that differ most)"
        )
    return lines


def _of_output(output: dict[str, Any], old: str) -> str:
    unit = f" {output['unit']}" if output["unit"] else ""
    text = f"  {output['name']}: differs by {output['mean']:.4g}{unit} in the mean, "
    text += f"{output['max']:.4g} at most"
    if output["mean_by_spread"] is None:
        text += f"; that of {old} does not change"
    else:
        text += (
            f", {output['mean_by_spread']:.2%} and {output['max_by_spread']:.2%} of the "
            f"{output['spread']:.4g} by which that of {old} spreads"
        )
    shift = output["shift"]
    if shift:
        text += f"; {abs(shift):.4g} {'higher' if shift > 0 else 'lower'} in the mean"
    if "same_side" in output:
        text += f"; same side of 0.5 in {output['same_side']:.2%}"
    return text
