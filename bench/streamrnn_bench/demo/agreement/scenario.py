"""Sequence of the demonstration: learn, judge, look for the unit, and draw it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamrnn import Engine
from streamrnn.errors import StreamRNNError, TrainingError
from streamrnn.model.model import Model
from streamrnn.reference.gates import LayerGates, run_gates
from streamrnn.training.memory.trace import Trace, trace_of, trace_text, write_trace
from streamrnn_bench.demo.agreement.grammar import Sentence, sentences
from streamrnn_bench.demo.agreement.learn import Judged, Parts, judge, learn, words_as_inputs
from streamrnn_bench.demo.agreement.units import (
    KEEPS,
    RESETS,
    TELLS,
    Unit,
    best_unit,
    measure_units,
)
from streamrnn_bench.demo.output import Output, duration

__all__ = ["Options", "run_scenario"]

SEED = 1  # of the sentences
SHORT, LONG = (0, 3), (4, 8)  # distractors
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 6000, 1000, 1000
NUM_LOOKED_AT = 200  # long sentences whose gates are computed
TOLERANCE = 1e-4  # of a probability
NUM_SHOWN = 3  # units


@dataclass(frozen=True)
class Options:
    """Options of the command."""

    model: Path
    picture: Path | None
    updates: int  # 0: as many as it needs


def run_scenario(options: Options, output: Output) -> None:
    """Train, judge and draw; every number is measured in this run."""
    output.line("Which number does the verb have? Every number is of this run.")
    parts = _draw_sentences()
    output.heading("Learn")
    example = max(parts.train[:20], key=lambda sentence: sentence.num_distractors)
    output.say(
        f"{len(parts.train):,} sentences of {SHORT[0]} to {SHORT[1]} distractors, one after the "
        f"other as one stream, such as: {' '.join(example.words)} Before each verb an LSTM is "
        "asked whether it will be singular or plural."
    )
    began = time.perf_counter()
    model = learn(parts, options.model, options.updates, output)
    output.say(f"Trained in {duration(time.perf_counter() - began)}.")
    output.heading(f"Longer sentences: {LONG[0]} to {LONG[1]} distractors")
    tested = parts.short + parts.long
    judged = judge(model, parts, tested)
    _show_accuracy(judged, len(parts.short), tested, output)
    output.heading("Which unit carries the number?")
    looked_at = parts.long[:NUM_LOOKED_AT]
    found = _gates(model, looked_at)
    units = sorted(measure_units(found, looked_at), key=lambda unit: -unit.score)
    best = _show_units(units, output)
    output.heading("The unit over a sentence")
    _show_trace(_trace(found, best, looked_at), options.picture, output)


def _draw_sentences() -> Parts:
    rng = np.random.default_rng(SEED)
    train, validation, short = (
        sentences(count, SHORT, rng) for count in (NUM_TRAIN, NUM_VALIDATION, NUM_TEST)
    )
    return Parts(train, validation, short, sentences(NUM_TEST, LONG, rng))


def _gates(model: Model, looked_at: list[Sentence]) -> LayerGates:
    """Compute the gates in float64, whose outputs must be the engine's."""
    x = words_as_inputs(model, looked_at)
    y, [found] = run_gates(model, x[None])
    worst = float(np.abs(Engine(model).steps("looked at", x) - y[0]).max())
    if not worst <= TOLERANCE:
        raise StreamRNNError(
            f"a probability of the engine differs from float64's by {worst:.2g}: a defect of "
            "StreamRNN, please report it"
        )
    return found


def _show_accuracy(judged: Judged, num_short: int, tested: list[Sentence], output: Output) -> None:
    misled = np.array([sentence.nouns[-1] != sentence.number for sentence in tested])
    is_long = np.arange(len(tested)) >= num_short
    rows = []
    for way, right in judged.right.items():
        shares = (right[~is_long], right[is_long], right[is_long & misled])
        rows.append((way, *(f"{share.mean():.1%}" for share in shares)))
    header = ("right", "as in training", "longer", "longer, misled by the last noun")
    output.table(header, rows)
    output.line()
    output.say(f"{num_short:,} sentences of each length, read by the engine as one new stream.")


def _show_units(units: list[Unit], output: Output) -> Unit:
    """Show the best units; say whether the first does as the textbooks tell it."""
    best = best_unit(units)
    rows = [
        (
            f"unit {unit.index}",
            f"{unit.tells:+.2f}",
            f"{unit.keeps:.2f}",
            f"{unit.resets:.2f}",
            f"{unit.score:.2f}",
        )
        for unit in units[:NUM_SHOWN]
    ]
    output.table(("", "tells", "keeps", "resets", "score"), rows)
    output.line()
    output.say(
        "Tells: correlation of its cell state before the verb with the subject's number. Keeps: "
        "its forget gate over the words between subject and verb, mean. Resets: its smallest "
        "forget gate from the verb before to the subject, mean. Score: |tells| times keeps less "
        "resets."
    )
    wanted = f"tells at least {TELLS}, keeps at least {KEEPS}, resets at most {RESETS}"
    if best.follows:
        output.say(
            f"Unit {best.index} does as the textbooks tell it ({wanted}): forget gate near 0 "
            "resets it before each subject, near 1 it carries the number over the distractors."
        )
    else:
        output.say(
            f"No unit does as the textbooks tell it ({wanted}): the number is carried by several "
            f"together. Unit {best.index} comes nearest."
        )
    return best


def _trace(found: LayerGates, best: Unit, looked_at: list[Sentence]) -> Trace:
    """Cut out the sentence with most distractors that ends with one of the other number."""
    order = [k for k, each in enumerate(looked_at) if k and each.nouns[-1] != each.number]
    chosen = max(order, key=lambda k: (looked_at[k].num_distractors, -len(looked_at[k].words)))
    before, sentence = looked_at[chosen - 1], looked_at[chosen]
    start = sum(len(each.words) for each in looked_at[:chosen])
    tail = len(before.words) - before.verb
    steps = slice(start - tail, start + len(sentence.words))
    title = f"unit {best.index}: forget 0 resets, keep 1 carries"
    return trace_of(found, best.index, steps, title, (*before.words[-tail:], *sentence.words))


def _show_trace(trace: Trace, picture: Path | None, output: Output) -> None:
    try:
        output.line(trace_text(trace))
        output.line()
    except TrainingError as error:
        output.say(f"Not drawn: {error}.")
    gates = list(trace.gates.items())[:2]
    rows = [
        (word, *(f"{values[k]:.2f}" for _, values in gates), f"{trace.state[k]:+.2f}")
        for k, word in enumerate(trace.labels)
    ]
    output.table(("", *(name for name, _ in gates), trace.state_name), rows)
    if picture is None:
        return
    output.line()
    try:
        write_trace(trace, picture)
        output.say(f"{picture}: the same as a picture.")
    except TrainingError as error:
        output.say(f"{picture} is not drawn: {error}.")
