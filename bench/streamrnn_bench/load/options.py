"""What a load is: options as a user gives them, checked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from streamrnn_bench.load.arrivals import Pattern
from streamrnn_bench.load.senders import MAX_SENDERS
from streamrnn_bench.report.results import BenchError

__all__ = ["ARRIVALS", "LoadOptions", "parse_rate", "parse_time_s"]

ARRIVALS = tuple(pattern.name.lower() for pattern in Pattern)
_MAX_WINDOW = 256
_UNITS_S = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0}
_TIME = re.compile(r"([0-9.]+(?:e-?[0-9]+)?)\s*(us|µs|ms|s|)")


def parse_time_s(text: str) -> float:
    """Parse ``"1ms"``, ``"250us"`` or ``"2.5s"``; a bare number is in seconds."""
    found = _TIME.fullmatch(text.strip())
    try:
        value = float(found[1]) * _UNITS_S[found[2]] if found else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < 1e6:
        raise BenchError(f"{text!r} is no time; expected is for instance 1ms, 250us or 2s")
    return value


def parse_rate(text: str) -> tuple[float, float]:
    """Parse steps a second of a stream: ``"10"``, or ``"1..100"`` for streams between the two."""
    parts = text.split("..")
    try:
        rates = [float(part) for part in parts]
    except ValueError:
        rates = []
    if len(rates) not in (1, 2) or not all(0 < rate <= 1e6 for rate in rates):
        raise BenchError(f"{text!r} is no rate; expected are steps a second: 10, or 1..100")
    return min(rates), max(rates)


@dataclass(frozen=True)
class LoadOptions:
    """A load on a server; without ``rate`` a closed loop."""

    streams: int = 1000
    rate: tuple[float, float] | None = None  # steps a second of a stream, least and most
    arrivals: str = "poisson"
    burst: int = 8
    in_flight: int = 0  # messages of a stream; 0: one in a closed loop, four in an open one
    chunk: int = 1
    batch: int = 1
    models: tuple[str, ...] = ()
    life: int = 0  # messages of a stream on average until it is closed and another opened
    threads: int = 1
    ramp_s: float = 0.0
    warm_up_s: float = 1.0
    duration_s: float = 10.0
    stable: float | None = None  # of the last intervals' p99: end when they differ by less
    timeout_s: float = 5.0
    seed: int = 0
    verify: Path | None = None
    keep_streams: bool = False
    is_echo: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        for name, most in (
            ("streams", MAX_SENDERS),
            ("chunk", _MAX_WINDOW),
            ("batch", 4096),
            ("threads", 64),
            ("burst", _MAX_WINDOW),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise BenchError(f"--{name} is {getattr(self, name)}; it is from 1 to {most}")
        if self.streams % self.batch:
            raise BenchError(
                f"{self.streams} streams are no whole number of batches of {self.batch}"
            )
        if self.life < 0 or self.ramp_s < 0 or self.warm_up_s < 0 or self.duration_s <= 0:
            raise BenchError("times and lives of streams are not negative; --duration is above 0")
        if self.batch > 1 and self.chunk > 1:
            raise BenchError("a batch has one step of each stream: leave --chunk or --batch out")
        if self.window > _MAX_WINDOW:
            raise BenchError(
                f"{self.slots} messages of {self.chunk} steps in flight are {self.window} steps; a "
                f"server remembers at most {_MAX_WINDOW} of a stream: fewer with --in-flight"
            )
        if self.verify and len(self.models) > 1:
            raise BenchError("--verify computes one model; name it alone with --models")

    @property
    def slots(self) -> int:
        """Messages of a stream that may be in flight: a power of two."""
        wanted = self.in_flight or (4 if self.rate else 1)
        if self.rate and self.arrivals == "bursts":
            wanted = max(wanted, self.burst)
        return 1 << max(wanted - 1, 0).bit_length()

    @property
    def window(self) -> int:
        """Steps that the server must remember of a stream: a power of two."""
        return int(self.slots * (1 << (self.chunk - 1).bit_length()))

    @property
    def steps_a_message(self) -> int:
        """Steps that one message carries."""
        return self.chunk * self.batch

    @property
    def offered(self) -> float | None:
        """Steps a second of all streams in an open loop, on average; None in a closed one."""
        if self.rate is None:
            return None
        low, high = self.rate
        # The distances of a stream's messages are even on a logarithmic scale, and so are rates.
        mean = low if low == high else (high - low) / math.log(high / low)
        return self.streams * mean

    @property
    def case(self) -> str:
        """What is measured, in one line: the same words for the same load."""
        return f"{self.streams} streams, {self.series}"

    @property
    def series(self) -> str:
        """What loads that differ by their number of streams share."""
        if self.rate is None:
            words = [f"closed loop, {self.slots} in flight"]
        else:
            low, high = self.rate
            rates = f"{low:g}" if low == high else f"{low:g}..{high:g}"
            bursts = f" of {self.burst}" if self.arrivals == "bursts" else ""
            words = [f"{rates} steps/s each, {self.arrivals}{bursts}"]
        words += [f"chunks of {self.chunk}"] * (self.chunk > 1)
        words += [f"batches of {self.batch}"] * (self.batch > 1)
        words += [f"lives of {self.life}"] * (self.life > 0)
        return ", ".join(words + list(self.models))
