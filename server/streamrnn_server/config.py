"""How a server is to run: every limit in one place, checked before anything starts."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from streamrnn.errors import StartError
from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn.state.catalogue import MAX_MODELS
from streamrnn_client.protocol import (
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_PORT,
    DURABILITIES,
    MAX_BATCH,
)
from streamrnn_server.memory_limit import cgroup_limits

__all__ = [
    "DEVICES",
    "MAX_STEPS_PER_S",
    "MAX_USER_NAME_BYTES",
    "Endpoint",
    "ServerConfig",
    "UserLimits",
    "family_of",
    "format_bytes",
    "parse_bytes",
    "parse_endpoint",
    "parse_metrics_address",
]

_BYTES = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)([KMGTkmgt]?)")
_MAX_BYTES = 2**60
_HOST = r"(\[[^\]\x00-\x20]+\]|[^:/\[\]\x00-\x20]+)"
_ENDPOINT = re.compile(rf"tcp://{_HOST}:(\d{{1,5}}|\*)")
_METRICS_ADDRESS = re.compile(rf"(?:{_HOST}:)?(\d{{1,5}})")
_MAX_S = 10**9  # of times that are counted in ns
_MAX_SHARDS = 64
MAX_STEPS_PER_S = 10**9
_MAX_DIAGNOSTICS_STREAMS = 64
_MAX_LOADS = 1024
_MAX_HISTORY = 2**16
DEVICES = ("cpu", "cuda", "auto")
_ANY_IPV4 = ipaddress.IPv4Address(0)
MAX_USER_NAME_BYTES = 255  # so that the length fits in a byte, in a shard and in a record


@dataclass(frozen=True)
class Endpoint:
    """A TCP address as ZeroMQ writes it; port 0 stands for one that the system chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port or '*'}"

    def shard(self, k: int) -> Endpoint:
        """Return the address of shard ``k``: the port ``k`` above, or port 0 again."""
        return Endpoint(self.host, self.port + k if self.port else 0)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for all addresses of this machine, and so is none to connect to."""
        if self.host == "*":
            return True
        try:
            address = ipaddress.ip_address(self.host.strip("[]"))
        except ValueError:
            # What the C library takes for an IPv4 address: "0", "0.0".
            return _inet_aton(self.host) == bytes(4)
        return address.is_unspecified or getattr(address, "ipv4_mapped", None) == _ANY_IPV4

    def numeric(self) -> Endpoint:
        """Return it with its host as a number, IPv4 rather than IPv6: ZeroMQ binds no names.

        What is no name of a host is left as it is: a network interface's is bound by ZeroMQ itself.
        """
        if self.host == "*":
            return self
        try:
            found = socket.getaddrinfo(
                self.host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError):  # the latter of a part with more than 63 letters
            return self
        family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        host = str(address[0])
        return Endpoint(f"[{host}]" if family == socket.AF_INET6 else host, self.port)


def _inet_aton(host: str) -> bytes | None:
    try:
        return socket.inet_aton(host)
    except OSError:
        return None


def parse_endpoint(text: str, option: str) -> Endpoint:
    """Read an address; ``option`` names where it comes from, for the error."""
    match = _ENDPOINT.fullmatch(text)
    port = 0 if match is None or match[2] == "*" else int(match[2])
    if match is None or port > 65535:
        raise StartError(
            f"{option} {text!r} is no address; it must be like tcp://127.0.0.1:{DEFAULT_PORT}"
        )
    return Endpoint(match[1], port)


def parse_metrics_address(text: str, option: str) -> Endpoint | None:
    """Read ``PORT``, of this machine alone, or ``HOST:PORT``; None for an empty text."""
    if not text:
        return None
    match = _METRICS_ADDRESS.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise StartError(
            f"{option} {text!r} is no address; it must be a port of this machine, like 9464, or "
            "HOST:PORT"
        )
    return Endpoint(match[1] or "127.0.0.1", int(match[2]))


def parse_bytes(text: str, option: str) -> int:
    """Read a number of bytes, as ``1.5G``; K, M, G and T stand for powers of 1024."""
    match = _BYTES.fullmatch(text)
    num_bytes = (
        int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    )
    if not 0 < num_bytes <= _MAX_BYTES:
        raise StartError(
            f"{option} {text!r} is no number of bytes; it must be like 2G, 512M or 1000000"
        )
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """Write a number of bytes for people, as ``1.5 GiB``."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} GiB"


def _half_of_the_memory() -> int:
    """Return half of what this process may have: of the machine's memory, or of its cgroup's."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([most, *cgroup_limits()]) // 2


def family_of(name: str) -> str:
    """Return the name that a model shares with its other versions: what stands before ``@``."""
    return name.partition("@")[0]


def _history(text: str) -> tuple[str, int]:
    """Read ``N``, or ``NAME=N``; the name is empty where there is none."""
    name, equals, number = text.rpartition("=")
    is_number = number.isascii() and number.isdecimal() and len(number) < 9
    if not is_number or int(number) > _MAX_HISTORY or "@" in name or (equals and not name):
        raise StartError(
            f"--history {text!r} must be N, or NAME=N for all versions of one model, with N from 0 "
            f"to {_MAX_HISTORY}"
        )
    return name, int(number)


class UserLimits(NamedTuple):
    """What one user may take of a server."""

    max_streams: int  # in memory
    max_bytes: int  # of their states; 0: any number
    max_steps_per_s: int  # 0: any number


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How a server is to run; what most fields mean is the help of their option below."""

    bind: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", DEFAULT_PORT))
    advertise: Endpoint | None = None
    num_shards: int = 1
    precision: str = "float32"
    device: str = "cpu"
    max_streams: int = 1 << 20  # of all shards together
    # Rows, replies kept, requests that wait, index, what is on its way to disk: of all shards
    # together. Models, recordings, the program itself and libzmq's buffers come on top.
    memory_budget_bytes: int = field(default_factory=_half_of_the_memory)
    idle_limit_s: int = 0
    state_dir: Path | None = None
    durability: str = "none"
    checkpoint_interval_s: float = 1.0  # also, how soon a disk that has failed is tried again
    time_to_live_s: int = 0
    backup_dir: Path | None = None
    curve_secret_key: Path | None = None
    curve_clients: Path | None = None
    admins: tuple[str, ...] = ()
    user_share: int = 50
    user_disk_bytes: int = 0  # 0: the share of the disk
    user_memory_bytes: int = 0  # 0: any number
    user_steps_per_s: int = 0  # 0: any number
    user_limits_file: Path | None = None
    max_steps_per_s: int = 0  # of all users together; 0: any number
    insecure: bool = False
    metrics: Endpoint | None = None
    diagnostics_streams: int = 4  # recorded at once, of all shards together
    models_dir: Path | None = None
    watch_models: bool = False
    max_loads: int = 32
    history: tuple[str, ...] = ()  # "N", or "NAME=N" of one model's versions
    # Without an option:
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES  # far larger requests cut the connection
    max_in_flight: int = 2 * MAX_BATCH  # replies of one client; those beyond are dropped, counted
    retry_after_ms: int = 100  # what a client that finds no capacity is told to wait
    max_state_bytes: int = 2**40
    num_restarts: int = 0  # by a supervisor, after crashes of the servers before this one

    def __post_init__(self) -> None:
        if not 1 <= self.num_shards <= _MAX_SHARDS:
            raise StartError(f"--shards is {self.num_shards}; it must be 1 to {_MAX_SHARDS}")
        if self.max_streams < 1:
            raise StartError(f"--max-streams is {self.max_streams}; it must be at least 1")
        if not 0 <= self.diagnostics_streams <= _MAX_DIAGNOSTICS_STREAMS:
            raise StartError(
                f"--diagnostics-streams is {self.diagnostics_streams}; it must be 0 (none) to "
                f"{_MAX_DIAGNOSTICS_STREAMS}"
            )
        if not 0 <= self.idle_limit_s <= _MAX_S:
            raise StartError(f"--idle-limit is {self.idle_limit_s}; it must be 0 to {_MAX_S} s")
        if self.device not in DEVICES:
            raise StartError(f"--device is {self.device!r}; it must be one of {', '.join(DEVICES)}")
        known = DEVICE_PRECISIONS.get(self.device) or {
            name: None for names in DEVICE_PRECISIONS.values() for name in names
        }
        if self.precision not in known:
            raise StartError(
                f"--precision is {self.precision!r}; with --device {self.device} it must be one of "
                f"{', '.join(known)}"
            )
        if self.durability not in DURABILITIES:
            raise StartError(
                f"--durability is {self.durability!r}; it must be one of {', '.join(DURABILITIES)}"
            )
        if (self.state_dir is None) != (self.durability == "none"):
            raise StartError(
                "--state-dir and --durability checkpoint or always belong together: the one says "
                "where streams are kept, the other when"
            )
        if not 0 < self.checkpoint_interval_s <= 3600:
            raise StartError(
                f"--checkpoint-interval is {self.checkpoint_interval_s}; it must be above 0 s and "
                "at most 3600 s"
            )
        has_no_disk = self.time_to_live_s != 0 and self.state_dir is None
        if has_no_disk or not 0 <= self.time_to_live_s <= _MAX_S:
            raise StartError(
                f"--time-to-live is {self.time_to_live_s}; it must be 0 to {_MAX_S} s, and needs "
                "--state-dir"
            )
        if self.backup_dir is not None and (self.state_dir is None or not self.backup_dir.is_dir()):
            raise StartError(
                f"--backup-dir is {self.backup_dir}; it must be a folder that is there, and needs "
                "--state-dir"
            )
        if not 1 <= self.max_loads <= _MAX_LOADS:
            raise StartError(f"--max-loads is {self.max_loads}; it must be 1 to {_MAX_LOADS}")
        self._check_history()
        if self.models_dir is not None and not self.models_dir.is_dir():
            raise StartError(f"--models-dir {self.models_dir} is no directory")
        if self.watch_models and self.models_dir is None:
            raise StartError("--watch-models needs a folder to watch: --models-dir")
        if self.advertise is not None and (self.advertise.is_wildcard or not self.advertise.port):
            raise StartError(
                f"--advertise is {self.advertise}; clients connect to it: it must name a host and "
                "a port, like tcp://rnn.example.org:7070"
            )
        if self.bind.is_wildcard and self.num_shards > 1 and self.advertise is None:
            raise StartError(
                f"{self.bind} is no address that clients could connect to, and they must be told "
                f"where each of {self.num_shards} shards is: give --advertise tcp://HOST:PORT, or "
                "bind one address"
            )
        for endpoint in (self.bind, self.advertise):
            if endpoint is not None and endpoint.port + self.num_shards - 1 > 65535:
                raise StartError(f"{endpoint} leaves no port for shard {self.num_shards - 1}")
        if (self.curve_secret_key is None) != (self.curve_clients is None):
            raise StartError(
                "--curve-secret-key and --curve-clients belong together: the one is the server's, "
                "the other says who may connect; 'streamrnn keys NAME' makes both"
            )
        if not 1 <= self.user_share <= 100:
            raise StartError(f"--user-share is {self.user_share}; it must be 1 to 100 percent")
        for option, value in (
            ("--max-steps-per-s", self.max_steps_per_s),
            ("--user-steps-per-s", self.user_steps_per_s),
        ):
            if not 0 <= value <= MAX_STEPS_PER_S:
                raise StartError(f"{option} is {value}; it must be 0 to {MAX_STEPS_PER_S}")
        if not 0 <= self.user_memory_bytes <= _MAX_BYTES:
            raise StartError(f"--user-memory is {self.user_memory_bytes}; it must be 0 or more")
        if self.user_limits_file is not None and not self.has_users:
            raise StartError("--user-limits says what users may take, so it needs --curve-clients")
        if self.admins and not self.has_users:
            raise StartError("--admin names a user, so it needs --curve-clients")
        if not self.bind.is_loopback and not self.insecure and not self.has_users:
            raise StartError(
                f"{self.bind} can be reached by other machines, and nothing keeps strangers out: "
                "give keys (--curve-secret-key, --curve-clients), bind 127.0.0.1, or say "
                "--insecure if the network is yours alone"
            )

    def _check_history(self) -> None:
        names = [_history(text)[0] for text in self.history]
        if len(set(names)) < len(names):
            raise StartError(f"--history {' '.join(self.history)} says one thing twice")
        if self.device == "cuda" and self.history:
            raise StartError("--history needs a CPU: streams that a GPU computes keep no inputs")

    def history_of(self, model: str) -> int:
        """Return how many inputs are kept of each stream of a model, whatever its version."""
        numbers = dict(map(_history, self.history))
        return numbers.get(family_of(model), numbers.get("", 0))

    @property
    def has_users(self) -> bool:
        """Whether clients need keys, and streams belong to users."""
        return self.curve_secret_key is not None

    def max_models_from(self, num_models: int) -> int:
        """Return how many models there may ever be, if it begins with so many."""
        if self.models_dir is None:
            return num_models
        return max(num_models, min(num_models + self.max_loads, MAX_MODELS))

    @property
    def keeps_journal(self) -> bool:
        """Whether inputs are on disk before their answers, where a CPU computes."""
        # A record that expires is deleted though its stream may yet be stepped, in memory.
        return self.durability == "always" and self.time_to_live_s == 0

    @property
    def memory_budget_of_a_shard(self) -> int:
        """The most bytes for the streams of one shard."""
        return self.memory_budget_bytes // self.num_shards

    @property
    def diagnostics_streams_of_a_shard(self) -> int:
        """The most streams of one shard that are recorded at once."""
        return -(-self.diagnostics_streams // self.num_shards)

    @property
    def max_streams_of_a_shard(self) -> int:
        """The most open streams of one shard."""
        return -(-self.max_streams // self.num_shards)

    @property
    def user_limits(self) -> UserLimits:
        """What a user may take of whom nothing else is said."""
        max_streams = max(self.max_streams * self.user_share // 100, 1)
        return UserLimits(max_streams, self.user_memory_bytes, self.user_steps_per_s)
