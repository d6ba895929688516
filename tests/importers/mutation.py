"""One loop that damages good files of every format and imports what came of it.

A format has good files, and ways to damage one: any bytes, and what keeps the outermost layer whole
so that the damage gets further in.
"""

from __future__ import annotations

import io
import json
import re
import resource
import signal
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamrnn.errors import ModelError
from streamrnn.importers.source import import_file

__all__ = ["Format", "campaign", "in_archive", "in_header", "in_json", "in_onnx"]

Damage = Callable[[bytes, np.random.Generator], bytes]
MAX_BYTES_BESIDE = 200e6
MAX_SECONDS = 90  # of one import, on a busy machine; two are much, the child of HDF5 has ten
NUMBERS = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, (1 << 31) - 1, (1 << 63) - 1]
TOKENS = [b"null", b"-1", b"[]", b"{}", b"1e400", b'"x"', b"true", b"0", b"[[1]]", b"9999999999"]
TOKENS += [b"NaN", b"[0.5, 0.5]", b'"lstm"', b"1e-320", b"," * 9, b"[" * 200, b"1.0, " * 60]
VALUE = re.compile(rb'-?\d[\d.eE+-]*|"(?:[^"\\]|\\.)*"|null|true|false|\[\]|\{\}')


@dataclass(frozen=True)
class Format:
    """Good files of one format, and how to damage them."""

    name: str
    good: Sequence[bytes]
    damages: Sequence[Damage] = ()  # beside `in_bytes`
    config: bytes | None = None  # for --config


def in_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Change, insert, repeat or leave out some bytes."""
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(damaged) + 1))
        end = at + int(rng.integers(1, 1 + min(64, 1 + len(damaged) // 4)))
        width = int(rng.choice([1, 2, 4, 8]))
        match rng.integers(8):
            case 0 | 1 if at < len(damaged):
                damaged[at] = rng.integers(256)
            case 2 if at < len(damaged):
                damaged[at] ^= 1 << rng.integers(8)
            case 3:
                number = int(rng.choice(NUMBERS)) & ((1 << 8 * width) - 1)
                damaged[at : at + width] = number.to_bytes(width, "little")
            case 4:
                del damaged[at:end]
            case 5:
                damaged[at:at] = damaged[at:end]
            case 6:
                damaged[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 7 if rng.random() < 0.3:
                del damaged[at:]
    return bytes(damaged)


def in_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Put other values in place of some, or damage a few letters."""
    for _ in range(rng.integers(1, 4)):
        places = [match.span() for match in VALUE.finditer(data)]
        if not places:
            break
        # Half of the time one of the first, where everything is but long lists of numbers.
        most = len(places) if rng.random() < 0.5 else min(len(places), 40)
        begin, end = places[rng.integers(most)]
        other = slice(*places[rng.integers(len(places))])
        new = TOKENS[rng.integers(len(TOKENS))] if rng.random() < 0.7 else data[other]
        data = data[:begin] + new + data[end:]
    return in_bytes(data, rng) if rng.random() < 0.1 else data


def in_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage the JSON of a safetensors file and keep its length true."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = in_json(data[8:end], rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def in_archive(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage one part of a zip archive."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        chosen = names[rng.integers(len(names))]
        for name in names:
            part = old.read(name)
            if name == chosen:
                part = in_json(part, rng) if name.endswith(".json") else in_bytes(part, rng)
            packed = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
            new.writestr(name, part, packed)
    return made.getvalue()


def in_onnx(data: bytes, rng: np.random.Generator) -> bytes:
    """Exchange operators, edges, shapes and attributes of a graph."""
    import onnx

    model = onnx.load_from_string(data)
    graph = model.graph
    nodes, tensors = list(graph.node), list(graph.initializer)
    edges = [name for node in nodes for name in (*node.input, *node.output)]
    for _ in range(rng.integers(1, 5)):
        node = nodes[rng.integers(len(nodes))]
        match rng.integers(7):
            case 0:
                node.op_type = nodes[rng.integers(len(nodes))].op_type
            case 1 if node.input:
                node.input[rng.integers(len(node.input))] = edges[rng.integers(len(edges))]
            case 2 if node.attribute:
                item = node.attribute[rng.integers(len(node.attribute))]
                item.i = int(rng.choice([-1, 0, 1, 2, 7, 1 << 40]))
                item.f = float(rng.choice([0, -1, 1e30, np.inf]))
                item.ints.extend([int(rng.integers(-3, 9))])
            case 3 if node.attribute:
                del node.attribute[rng.integers(len(node.attribute))]
            case 4 if tensors:
                tensor = tensors[rng.integers(len(tensors))]
                if tensor.dims:
                    tensor.dims[rng.integers(len(tensor.dims))] = int(
                        rng.choice([0, 1, 3, 1 << 33])
                    )
                tensor.data_type = int(rng.choice([1, 1, 6, 7, 10, 11, 16, 9]))
            case 5 if tensors:
                tensor = tensors[rng.integers(len(tensors))]
                if tensor.raw_data:
                    tensor.raw_data = in_bytes(tensor.raw_data, rng)
            case 6:
                del node.input[rng.integers(len(node.input) + 1) :]
    return model.SerializeToString()


@contextmanager
def _limited(seconds: float):
    """Raise TimeoutError in the main thread after so many seconds."""

    def stop(*_):
        raise TimeoutError(f"importing takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak_bytes(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * 1024


def campaign(
    made: Format, directory: Path, seed: int, *, num_files: int = 1 << 62, seconds: float = 1e9
) -> Counter[str]:
    """Import damaged files, so many or for so long; return how often each outcome came.

    A file that raises anything else than `ModelError`, takes too long, or takes memory, is left in
    the directory, and the error goes on. Memory is the process's highest: the format that raised it
    shows it, once.
    """
    rng = np.random.default_rng(seed)
    path, config = directory / f"damaged.{made.name}", None
    if made.config is not None:
        config = directory / "config"
    for data in made.good:  # what is loaded but once
        path.write_bytes(data)
        if config is not None:
            config.write_bytes(made.config or b"")
        import_or_refuse(path, config)
    peaks = {who: _peak_bytes(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)}
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while outcomes.total() < num_files and time.monotonic() < end:
        damages = (in_bytes, *made.damages)
        data = made.good[int(rng.integers(len(made.good)))]
        data = damages[int(rng.integers(len(damages)))](data, rng)
        path.write_bytes(data)
        if config is not None and rng.random() < 0.3:
            config.write_bytes(in_json(made.config or b"", rng))
        elif config is not None:
            config.write_bytes(made.config or b"")
        with _limited(MAX_SECONDS):
            outcomes[import_or_refuse(path, config)] += 1
        for who, before in peaks.items():
            beside = _peak_bytes(who) - before - len(data)
            assert beside < MAX_BYTES_BESIDE, f"{path} took {beside} bytes beside itself"
    return outcomes


def import_or_refuse(path: Path, config: Path | None = None) -> str:
    """Import a file; return what came of it."""
    try:
        return type(import_file(path, config=config)).__name__
    except ModelError as error:
        return type(error).__name__


def as_json(value: object) -> bytes:
    """Write a value as a file has it."""
    return json.dumps(value).encode()
