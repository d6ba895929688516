"""``streamrnn bench``: measure against peers, an echo, and the machine's limits."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from streamrnn_bench.commands.load import LOAD, configure_load, run_load
from streamrnn_bench.commands.reports import REPORTS, write_reports
from streamrnn_bench.report.compare import RUN_NOISE
from streamrnn_bench.report.measured import file_stem, measure_all
from streamrnn_bench.report.results import (
    ERROR_UNIT,
    BenchError,
    Result,
    header,
    processor,
    table,
    write_json,
)
from streamrnn_bench.report.runs import runs_of
from streamrnn_bench.step.cases import BATCH_SIZES, Case, parse_case

__all__ = ["BENCHMARKS", "configure", "run"]

ALL = "all"
TRAINING = "training"
MEASURED = Path("docs/measured")
SETS = ("judged", "tuning")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        choices=(*BENCHMARKS, *NAMED, ALL, LOAD, TRAINING, *REPORTS),
        help=", ".join(BENCHMARKS) + f"; without it all of these; by name only {', '.join(NAMED)}; "
        f"{ALL}, short rounds of each into a page, 5 minutes; {LOAD}, of a server that runs; "
        f"{TRAINING}, which takes an hour; {', '.join(REPORTS)}, of "
        "what was written before",
    )
    parser.add_argument(
        "paths",
        metavar="FILE",
        nargs="*",
        help=f"all: the directory of the page ({MEASURED}); load: the server's address; report, "
        "compare: what --json wrote, or a directory of such files, of several runs",
    )
    parser.add_argument(
        "--json",
        metavar="FILE",
        help="also write one JSON object a line; into a directory: a file named by the processor "
        "or the GPU, and by the benchmark",
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="also write a table")
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="also write a page with charts, in one file"
    )
    parser.add_argument(
        "--runs",
        metavar="N",
        type=_positive,
        default=1,
        help="measure all of it so often, for `compare` (%(default)s)",
    )
    parser.add_argument(
        "--run-noise",
        metavar="PERCENT",
        type=float,
        default=100 * RUN_NOISE,
        help="compare: what two runs of one program may differ by (%(default)g)",
    )
    parser.add_argument(
        "--cases",
        metavar="CASE",
        nargs="+",
        help="layers such as 'lstm 64->128' or gru:16:32, instead of the benchmark's own",
    )
    parser.add_argument(
        "--batch-sizes",
        metavar="B",
        type=_positive,
        nargs="+",
        help="step: streams stepped at once",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="step, throughput: where steps are computed (%(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16"),
        default="float32",
        help="step --device cuda --cases: how what is multiplied is rounded (%(default)s)",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="step: beside PyTorch, onnxruntime and OpenVINO (the extra peers), called from Python",
    )
    parser.add_argument(
        "--against", metavar="PEER", nargs="+", help="peers: those whose names begin so (all)"
    )
    parser.add_argument(
        "--instances",
        metavar="N",
        type=_positive,
        nargs="+",
        help="sizes: models that run at once, each in a thread (1 and the number of cores)",
    )
    parser.add_argument(
        "--peers-python",
        metavar="FILE",
        type=Path,
        help="peers: the Python that has their packages (build/peers/bin/python, else this one)",
    )
    parser.add_argument(
        "--streams",
        metavar="N",
        type=_positive,
        help="throughput: streams, one step of each under way (1000); client: of a batch (1000); "
        "scale: streams (1000000); durability: streams (10000); load: streams (1000)",
    )
    parser.add_argument(
        "--shards",
        metavar="N",
        type=_positive,
        nargs="+",
        help="throughput: numbers of the server's shards, measured one after the other (1)",
    )
    parser.add_argument(
        "--windows",
        metavar="W",
        type=_positive,
        nargs="+",
        help="durability: steps that the server remembers of each stream (1 16)",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="durability: whose disk is asked (this one)",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=_positive, help="turns of a measurement and its reference"
    )
    parser.add_argument("--round-s", metavar="S", type=float, help="how long a turn is, in seconds")
    configure_load(parser)
    of_training = parser.add_argument_group("training")
    of_training.add_argument(
        "--set", choices=SETS, help="the ten series that judge (judged), or those to tune on"
    )
    of_training.add_argument(
        "--series", metavar="NAME", nargs="+", help="some series, instead of a set"
    )
    of_training.add_argument(
        "--budget", metavar="TIME", help="of each training, as for `streamrnn train`"
    )
    of_training.add_argument("--markdown", metavar="FILE", help="also write the table as Markdown")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _step(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    if args.peers:
        if args.device != "cpu":
            raise BenchError("--peers compares on the CPU; leave --device out")
        from streamrnn_bench.step.other_engines import require_peers, versions
        from streamrnn_bench.step.peers import PEER_CASES, measure_peers

        require_peers()
        print(versions())
        return measure_peers(cases or PEER_CASES, args.batch_sizes or BATCH_SIZES, **_rounds(args))

    if args.device == "cuda":
        from streamrnn_bench.step.cuda import GPU_CASES, GpuCase, measure_gpu_steps

        sizes = args.batch_sizes or (1, 4096)
        given = [
            GpuCase(case, num_streams, precision=args.precision)
            for case in cases
            for num_streams in sizes
        ]
        return measure_gpu_steps(given or GPU_CASES, **_rounds(args))

    from streamrnn_bench.step.cpu import CASES, measure_steps

    steps = measure_steps(cases or CASES, args.batch_sizes or BATCH_SIZES, **_rounds(args))
    if cases or args.batch_sizes:
        return steps
    from streamrnn_bench.step.variants import measure_forms

    return itertools.chain(steps, measure_forms(**_rounds(args)))


def _roundtrip(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.server.throughput import ROUNDTRIP_CASES, measure_roundtrips

    return measure_roundtrips(cases or ROUNDTRIP_CASES, **_rounds(args))


def _throughput(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.server.throughput import THROUGHPUT_CASES, measure_throughput

    sizes = {"num_streams": args.streams} if args.streams else {}
    return measure_throughput(
        cases or THROUGHPUT_CASES,
        device=args.device,
        shards=args.shards or (1,),
        **sizes,
        **_rounds(args),
    )


def _client(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.server.client import CLIENT_CASES, measure_client

    sizes = {"num_streams": args.streams} if args.streams else {}
    return measure_client(cases or CLIENT_CASES, **sizes, **_rounds(args))


def _scale(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.server.scale import SCALE_CASES, measure_scale

    sizes = {"num_streams": args.streams} if args.streams else {}
    return measure_scale(cases or SCALE_CASES, **sizes, **_rounds(args))


def _durability(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.server.durability import DURABILITY_CASES, measure_durability

    print("sharing the cores: the server's shard, I/O and writing threads, the generator's two")
    sizes = {"num_streams": args.streams} if args.streams else {}
    windows = {"windows": args.windows} if args.windows else {}
    return measure_durability(
        cases or DURABILITY_CASES,
        directory=args.directory,
        **windows,
        **sizes,
        **_rounds(args),
    )


def _sequences(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.training.sequences import measure_sequences

    return measure_sequences()


def _text(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.training.text.measure import measure_text

    return measure_text()


def _train(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.training.update import UPDATE_CASES, measure_updates

    return measure_updates(cases or UPDATE_CASES, **_rounds(args))


def _peers(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.peers.measure import measure_served_peers

    for case in cases or (Case("lstm", 64, 128),):
        yield from measure_served_peers(
            case, args.against or (), python=args.peers_python, **_rounds(args)
        )


def _sizes(args: argparse.Namespace, cases: Sequence[Case]) -> Iterator[Result]:
    from streamrnn_bench.step.sizes import measure_sizes

    return measure_sizes(instances=args.instances or (), **_rounds(args))


def _rounds(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options about rounds that were given; the rest are defaults."""
    given = {"num_rounds": args.rounds, "round_s": args.round_s}
    return {name: value for name, value in given.items() if value is not None}


# Imported when they run: --help must not wait for a compiler.
BENCHMARKS: dict[str, Callable[[argparse.Namespace, Sequence[Case]], Iterator[Result]]] = {
    "step": _step,
    "roundtrip": _roundtrip,
    "throughput": _throughput,
    "client": _client,
    "scale": _scale,
    "durability": _durability,
}
# Only by name: their data, or PyTorch, come from packages.
NAMED = {
    "sequences": _sequences,
    "text": _text,
    "train": _train,
    "peers": _peers,
    "sizes": _sizes,
}


def _json_path(args: argparse.Namespace) -> Path:
    """Return the file to write: in a directory one named by the processor or GPU."""
    path = Path(args.json)
    if not path.is_dir():
        return path
    name = processor()
    if args.device == "cuda":
        from streamrnn.kernels.cuda.compiler import gpu_name

        name = gpu_name()
    return path / f"{file_stem(f'{name} {args.name or ALL}')}.jsonl"


def run(args: argparse.Namespace) -> int:
    """Measure, and print tables; return 0, whatever the figures are.

    Raises a `BenchError` if a measurement cannot be made, or a result to be measured is wrong.
    """
    if args.name in REPORTS:
        return REPORTS[args.name](args)
    if args.name == LOAD:
        return run_load(args, _json_path(args) if args.json else None)
    if args.name == ALL:
        if len(args.paths) > 1:
            raise BenchError(f"bench all takes one directory, got {len(args.paths)}")
        print(header())
        print(f"\n{measure_all(Path(*args.paths) if args.paths else MEASURED)}")
        return 0
    if args.paths:
        raise BenchError(f"bench {args.name} takes no file; only {' and '.join(REPORTS)} do")
    if args.name == TRAINING:
        from streamrnn_bench.training.run import run_training

        return run_training(args, _json_path(args) if args.json else None)
    cases = [parse_case(text) for text in args.cases or ()]
    everything: list[Result] = []
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(_json_path(args), "w")) if args.json else None
        print(header())
        names = [args.name] if args.name else list(BENCHMARKS)
        for name in args.runs * names:
            results = []
            for result in (BENCHMARKS | NAMED)[name](args, cases):
                results.append(result)
                if file is not None:  # at once: what is measured stays, whatever comes next
                    write_json([result], file)
                    file.flush()
            print(f"\n{name}\n{table(results)}", flush=True)
            everything += results
    if everything:
        write_reports(args, [runs_of(everything)])
    wrong = [result.case for result in everything if result.unit == ERROR_UNIT]
    if wrong:
        raise BenchError(f"wrong, and so not timed: {', '.join(wrong)}")
    return 0
