"""One HTML page of results: charts, then every figure. It needs no other file and no script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from statistics import median

from streamrnn_bench.report.charts import Points, bar_chart, line_chart
from streamrnn_bench.report.results import UNITS_OF_COST, Result, number, ratio_text
from streamrnn_bench.report.runs import Runs
from streamrnn_bench.report.side_by_side import all_keys, middle_result

__all__ = ["html_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #d9dde3; --soft: #5d6673; --ink: #1a1f26; --paper: #fff;
  --c0: #2563a8; --c1: #c4502e; --c2: #2f8557; --c3: #7a4fa3; --c4: #a67b00; --c5: #0c8a97;
  --c6: #b03a73; --c7: #66717f }
@media (prefers-color-scheme: dark) { :root { --line: #39414c; --soft: #a3adba; --ink: #e8ebef;
  --paper: #15191f; --c0: #6aa5e6; --c1: #ee8a68; --c2: #66c293; --c3: #b693dd; --c4: #dcb548;
  --c5: #53c5d1; --c6: #e67fb0; --c7: #a6b0bd } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.note { color: var(--soft) } ul.runs { padding-left: 1.1rem }
svg { width: 100%; height: auto; display: block }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) }
svg text.inside { fill: var(--paper); font-weight: 600 }
svg text.unit { fill: var(--ink) }
.grid { stroke: var(--line); stroke-width: 1 }
svg g polyline { fill: none; stroke: currentColor; stroke-width: 2 }
svg g circle, svg g rect { fill: currentColor }
.s0 { color: var(--c0) } .s1 { color: var(--c1) } .s2 { color: var(--c2) } .s3 { color: var(--c3) }
.s4 { color: var(--c4) } .s5 { color: var(--c5) } .s6 { color: var(--c6) } .s7 { color: var(--c7) }
.legend span { display: inline-block; margin-right: 1.2rem; white-space: nowrap }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem;
  background: currentColor; border-radius: 2px }
svg g.again polyline { stroke-dasharray: 7 5 }
.legend .again i { background: none; outline: 2px dashed currentColor; outline-offset: -2px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap }
th:first-child, th:last-child, td:first-child, td.words { text-align: left }
td.words { white-space: normal; color: var(--soft); min-width: 12rem }
"""


def html_page(sides: Sequence[Runs]) -> str:
    """Return a page of one or several runs; what they cannot show is left out."""
    labelled = [
        (f"{side.name}: {result.case}" if len(sides) > 1 else result.case, side, result)
        for side in sides
        for result in (middle_result(results) for results in side.results.values())
    ]
    results = {label: result for label, _, result in labelled}
    told = "".join(f"<li>{escape(str(side))}</li>" for side in sides)
    sections = [
        _latency(labelled, len(sides) > 1),
        *_throughput([(side, result) for _, side, result in labelled], len(sides) > 1),
        _breakdown(results),
        *(_table(benchmark, sides) for benchmark in dict.fromkeys(k[0] for k in all_keys(sides))),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>StreamRNN: measured</title>'
        f"<style>{_STYLE}</style></head><body><h1>StreamRNN: measured</h1>"
        f'<ul class="runs">{told}</ul>'
        '<p class="note">Times belong to one machine; ratios to what was measured beside them.</p>'
        f"{''.join(sections)}</body></html>\n"
    )


def _latency(labelled: Sequence[tuple[str, Runs, Result]], tells_side: bool) -> str:
    """Draw time against percentile, whose axis gives every further nine the same room."""
    found: dict[str, dict[tuple[tuple[float, float], ...], str]] = {}
    percentiles: set[float] = set()
    for label, side, result in labelled:
        for prefix, of in (("", label), ("reference_", f"{label}: {result.reference}")):
            if f"{prefix}series" in result.details:
                of = str(result.details[f"{prefix}series"])
                of = f"{side.name}: {of}" if tells_side else of
            given = _numbers(result, f"{prefix}latency_us")
            points = [(float(p), value) for p, value in given if _is_number(p)]
            points = [(p, value) for p, value in points if 0 <= p < 100]
            if len(points) > 1:
                # What several results share is one line.
                line = tuple((1 / (1 - p / 100), value) for p, value in points)
                found.setdefault(of, {}).setdefault(line, label)
                percentiles |= {p for p, _ in points}
    if not found:
        return ""
    series: dict[str, Points] = {
        of if len(lines) == 1 else f"{of} ({label})": line
        for of, lines in found.items()
        for line, label in lines.items()
    }
    ticks = [(1 / (1 - p / 100), f"p{p:g}") for p in sorted(percentiles)]
    return "<h2>Latency</h2>" + line_chart(series, "percentile", "us", ticks)


def _throughput(labelled: Sequence[tuple[Runs, Result]], tells_side: bool) -> Iterator[str]:
    """Draw every unit of a rate against the number of streams, a line for each series."""
    charts: dict[str, dict[str, dict[int, float]]] = {}
    for side, result in labelled:
        streams = result.details.get("streams")
        if not isinstance(streams, int) or streams < 1 or result.unit in UNITS_OF_COST:
            continue
        named = {"series": result.value, "reference_series": result.reference_value}
        for key, value in named.items():
            if key in result.details:
                name = str(result.details[key])
                name = f"{side.name}: {name}" if tells_side else name
                of_unit = charts.setdefault(result.unit, {})
                of_unit.setdefault(name, {})[streams] = value
    for unit, series in charts.items():
        yield f"<h2>Throughput against streams: {escape(unit)}</h2>"
        yield line_chart({n: list(of.items()) for n, of in series.items()}, "streams", unit)


def _breakdown(results: Mapping[str, Result]) -> str:
    found = {label: dict(_numbers(result, "breakdown_us")) for label, result in results.items()}
    bars = {label: parts for label, parts in found.items() if parts}
    return "<h2>Where a step's time goes</h2>" + bar_chart(bars, "us") if bars else ""


def _table(benchmark: str, sides: Sequence[Runs]) -> str:
    """List a benchmark's figures, each side's in columns of its own."""
    heads = "".join(f"<th>{escape(side.name)}</th><th>ratio</th>" for side in sides)
    rows = []
    for key in all_keys(sides):
        if key[0] != benchmark:
            continue
        cells, shown = [], ""
        for side in sides:
            results = side.results.get(key, ())
            if results:
                shown = shown or ". ".join(filter(None, (results[0].reference, results[0].note)))
                value = number(median(result.value for result in results))
                ratio = median(result.ratio for result in results)
                cells.append(f"<td>{value} {escape(key[2])}</td><td>{ratio_text(ratio)}</td>")
            else:
                cells.append("<td></td><td></td>")
        words = f'<td class="words">{escape(shown)}</td>'
        rows.append(f"<tr><td>{escape(key[1])}</td>{''.join(cells)}{words}</tr>")
    return (
        f'<h2>{escape(benchmark)}</h2><div class="scroll"><table><tr><th>case</th>{heads}'
        f"<th>reference</th></tr>{''.join(rows)}</table></div>"
    )


def _numbers(result: Result, name: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers above 0 of an object in the details."""
    given = result.details.get(name)
    if isinstance(given, Mapping):
        for key, value in given.items():
            if isinstance(value, int | float) and math.isfinite(value) and value > 0:
                yield str(key), float(value)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
