"""``streamrnn bench all``: the benchmarks one after the other, into a page of this machine.

Each is a process of its own with a bound of time: one that hangs, or lacks a package, costs the
others nothing.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from streamrnn_bench.child_process import start_child
from streamrnn_bench.report.results import (
    ERROR_UNIT,
    BenchError,
    Result,
    header,
    number,
    processor,
    ratio_text,
)
from streamrnn_bench.report.runs import Runs, read_runs

__all__ = ["PARTS", "TOTAL_S", "Part", "file_stem", "measure_all"]

TOTAL_S = 300.0
_LEAST_S = 5.0  # to begin a part
_STOP_S = 10.0  # to end its servers after an interrupt
_PROGRAM = (
    sys.executable,
    "-c",
    "import sys; from streamrnn_server.cli import main; sys.exit(main())",
)


@dataclass(frozen=True)
class Part:
    """One benchmark with short rounds."""

    title: str
    command: str  # after ``streamrnn bench``
    bound_s: float

    @property
    def arguments(self) -> list[str]:
        """Return the words of the command; ``'lstm 64->128'`` is one."""
        return [a or b for a, b in re.findall(r"'([^']*)'|(\S+)", self.command)]


# What matters most comes first. All bounds together exceed the time that there is; few are needed.
PARTS = (
    Part("A step beside the machine's limits", "step --rounds 15 --round-s 0.001", 60),
    Part("Request to reply", "roundtrip --rounds 6 --round-s 0.2", 30),
    Part("Throughput beside an echo", "throughput --rounds 6 --round-s 0.3", 40),
    Part(
        "Beside other servers",
        "peers --rounds 2 --round-s 0.2",
        80,
    ),
    Part(
        "A step beside other engines",
        "step --peers --cases 'lstm 64->128' 'gru 64->128' --rounds 20 --round-s 0.001",
        40,
    ),
    Part("Public sizes (no STAC result)", "sizes --rounds 4 --round-s 0.05", 45),
    Part("The client", "client --rounds 4 --round-s 0.2", 30),
    Part("Durability", "durability --rounds 2 --round-s 1", 45),
    Part("100,000 streams", "scale --streams 100000 --rounds 4 --round-s 0.3", 40),
    Part("An update of a training", "train --cases 'lstm 64->128' --rounds 10", 40),
)


@dataclass(frozen=True)
class _Done:
    part: Part
    took_s: float
    runs: Runs | None
    trouble: str  # empty if it came to its end


def file_stem(words: str) -> str:
    """Return a text as the name of a file without its ending."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def measure_all(
    directory: Path,
    parts: Sequence[Part] = PARTS,
    total_s: float = TOTAL_S,
    program: Sequence[str] = _PROGRAM,
) -> Path:
    """Run the parts, and replace this machine's page and JSON lines; return the page's path.

    Raises a `BenchError`, and replaces nothing, if nothing could be measured, and one afterwards
    if outputs were wrong.
    """
    directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    done, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        for k, part in enumerate(parts, 1):
            left_s = total_s - (time.monotonic() - began)
            print(f"\n[{k}/{len(parts)}] {part.title}: streamrnn bench {part.command}", flush=True)
            json_file = Path(folder, f"{k}.jsonl")
            done.append(_run(part, min(part.bound_s, left_s), json_file, program))
            if done[-1].trouble:
                print(f"{part.title}: {done[-1].trouble}", flush=True)
            if done[-1].runs is not None:
                lines.append(json_file.read_text("utf-8"))
    if not lines:
        raise BenchError(f"nothing could be measured: {done[-1].trouble if done else 'no part'}")
    page = directory / f"{file_stem(processor())}.md"
    _replace(page.with_suffix(".jsonl"), "".join(lines))
    _replace(page, _page(done, time.monotonic() - began))
    wrong = [result.case for each in done for result in _results(each) if result.unit == ERROR_UNIT]
    if wrong:
        raise BenchError(f"wrong, and so not timed: {', '.join(wrong)}")
    return page


def _run(part: Part, bound_s: float, json_file: Path, program: Sequence[str]) -> _Done:
    if bound_s < min(_LEAST_S, part.bound_s):
        return _Done(part, 0, None, "no time was left")
    command = [*program, "bench", *part.arguments, "--json", str(json_file)]
    began, trouble = time.monotonic(), ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = start_child(command, stderr=errors)
        try:
            code = process.wait(bound_s)
        except subprocess.TimeoutExpired:
            trouble = f"cut off after {bound_s:.0f} s"
        finally:
            _stop(process)
        if not trouble and code != 0:
            errors.seek(0)
            said = errors.read().split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "")
            trouble = f"failed: {last or f'exit code {code}'}"
    return _Done(part, time.monotonic() - began, _read(json_file), trouble)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a part that may run still; its servers end with it."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(file: Path) -> Runs | None:
    """Read what a part has written, without a line that it did not finish."""
    text = file.read_text("utf-8") if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if not whole.strip():
        return None
    file.write_text(whole, "utf-8")
    return read_runs(file)


def _replace(path: Path, text: str) -> None:
    """Put a whole file in the place of another."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, "utf-8")
    os.replace(new, path)


def _page(done: Sequence[_Done], took_s: float) -> str:
    lines = [
        f"# {processor()}",
        "",
        f"Written by `make bench` in {took_s:.0f} s, with short rounds: ratios are what to read,"
        " and single cells vary.",
        f"{header()}.",
    ]
    for each in done:
        lines += ["", f"## {each.part.title}", "", "```"]
        lines += [f"streamrnn bench {each.part.command}", "```", ""]
        if each.runs is not None:
            of = each.runs
            lines.append(
                f"{of.machine}, {of.cores} cores; commit {of.commit}; {of.began}; "
                f"{each.took_s:.0f} s."
            )
        if each.trouble:
            lines.append(f"**Not whole**: {_cell(each.trouble)}.")
        results = _results(each)
        if results:
            lines += ["", *_table(results)]
    return "\n".join(lines) + "\n"


def _results(done: _Done) -> list[Result]:
    return [result for found in done.runs.results.values() for result in found] if done.runs else []


def _table(results: Sequence[Result]) -> list[str]:
    """Format results as a table of Markdown; columns that hold nothing are left out."""
    rows = [("case", "measured", "reference", "of", "ratio", "wanted", "")]
    rows += [
        (
            result.case,
            f"{number(result.value)} {result.unit}",
            f"{number(result.reference_value)} {result.unit}",
            result.reference,
            ratio_text(result.ratio),
            "" if result.target is None else f"{result.target:.2f}",
            result.note,
        )
        for result in results
    ]
    aligns = ("---", "---:", "---:", "---", "---:", "---:", "---")
    kept = [k for k in range(len(aligns)) if any(row[k] for row in rows[1:])]
    shown = [[_cell(row[k]) for k in kept] for row in rows]
    shown.insert(1, [aligns[k] for k in kept])
    return [f"| {' | '.join(row)} |" for row in shown]


def _cell(text: str) -> str:
    """Return a text as it stands in Markdown, in one line."""
    return re.sub(r"([\\|*_`<\[])", r"\\\1", " ".join(text.split()))
