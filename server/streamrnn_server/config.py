"""How a server is to run: every limit in one place, checked before anything starts."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from streamrnn.errors import StartError
from streamrnn.kernels.precisions import DEVICE_PRECISIONS
from streamrnn_client.protocol.messages import (
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_PORT,
    DURABILITIES,
    MAX_BATCH,
)

__all__ = [
    "DEVICES",
    "Endpoint",
    "ServerConfig",
    "format_bytes",
    "parse_bytes",
    "parse_endpoint",
]

_BYTES = re.compile(r"(\d+(?:\.\d+)?)([KMGTkmgt]?)")
_CONTAINER_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_ENDPOINT = re.compile(r"tcp://(\[[^\]]+\]|[^:/]+):(\d+|\*)")
_MAX_SHARDS = 64
DEVICES = ("cpu", "cuda", "auto")


@dataclass(frozen=True)
class Endpoint:
    """A TCP address as ZeroMQ writes it; port 0 stands for one that the system chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self.host}:{self.port or '*'}"

    def shard(self, k: int) -> Endpoint:
        """Return the address of a shard.

        Parameters
        ----------
        k : int
            Number of the shard.

        Returns
        -------
        Endpoint
            The port ``k`` above, or port 0 again.
        """
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


def parse_endpoint(text: str, option: str) -> Endpoint:
    """Read an address.

    Parameters
    ----------
    text : str
        As ``tcp://127.0.0.1:7070``; port 0 or ``*`` lets the system choose.
    option : str
        Where it comes from, for the message.

    Returns
    -------
    Endpoint

    Raises
    ------
    StartError
        If it is no such address.
    """
    match = _ENDPOINT.fullmatch(text)
    port = 0 if match is None or match[2] == "*" else int(match[2])
    if match is None or port > 65535:
        raise StartError(
            f"{option} {text!r} is no address; it must be like tcp://127.0.0.1:{DEFAULT_PORT}"
        )
    return Endpoint(match[1], port)


def parse_bytes(text: str, option: str) -> int:
    """Read a number of bytes.

    Parameters
    ----------
    text : str
        As ``2G``, ``512M``, ``1.5G`` or ``1000000``; K, M, G and T stand for powers of 1024.
    option : str
        Where it comes from, for the message.

    Returns
    -------
    int

    Raises
    ------
    StartError
        If it is no such number.
    """
    match = _BYTES.fullmatch(text)
    num_bytes = (
        int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    )
    if num_bytes == 0:
        raise StartError(
            f"{option} {text!r} is no number of bytes; it must be like 2G, 512M or 1000000"
        )
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """Write a number of bytes for people.

    Parameters
    ----------
    num_bytes : float
        How many.

    Returns
    -------
    str
        As ``1.5 GiB``.
    """
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} GiB"


def _half_of_the_memory() -> int:
    """Return half of what this process may have: of the machine's memory, or of its container's."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no container, or without a limit ("max")
            most = min(most, int(Path(file).read_text()))
    return most // 2


@dataclass(frozen=True)
class ServerConfig:
    """How a server is to run.

    Attributes
    ----------
    bind : Endpoint
        Where shard 0 listens; the others on the ports above.
    advertise : Endpoint or None
        Where clients find shard 0, if they see it elsewhere than it is bound.
    num_shards : int
        Each is a thread and a socket, and needs an I/O thread besides.
    max_streams : int
        The most open streams, all shards together.
    idle_limit_s : int
        Streams without a request for longer are closed; 0: never.
    insecure : bool
        Whether an address other than loopback may be bound, without any authentication.
    curve_secret_key : Path or None
        The server's own key file; clients then need keys, and streams belong to users.
    curve_clients : Path or None
        Public keys of the clients: a directory, or one file.
    max_message_bytes : int
        Larger requests are refused with an error; far larger ones cut the connection.
    max_in_flight : int
        Replies that may wait for one client; those beyond are dropped and counted.
    memory_budget_bytes : int
        The most memory for streams, all shards together: rows, replies kept, requests that wait,
        index, what is on its way to disk. Models, the program itself and libzmq's buffers come on
        top.
    retry_after_ms : int
        What a client that finds no room is told to wait.
    state_dir : Path or None
        Where streams are kept on disk.
    durability : str
        ``none``, ``checkpoint`` or ``always``.
    checkpoint_interval_s : float
        How often changed streams are written; also, how soon a disk that has failed is tried again.
    time_to_live_s : int
        Streams on disk without a request for longer expire; 0: never.
    max_state_bytes : int
        The most that the state directory may hold.
    precision : str
        Of all models, see `streamrnn.kernels.precisions.DEVICE_PRECISIONS`: of the weights (CPU),
        or of both factors of each product (GPU).
    device : str
        What computes the steps: ``cpu``, ``cuda``, or ``auto`` for the faster one.
    """

    bind: Endpoint = field(default_factory=lambda: Endpoint("127.0.0.1", DEFAULT_PORT))
    advertise: Endpoint | None = None
    num_shards: int = 1
    max_streams: int = 1 << 20
    idle_limit_s: int = 0
    insecure: bool = False
    curve_secret_key: Path | None = None
    curve_clients: Path | None = None
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    max_in_flight: int = 2 * MAX_BATCH
    memory_budget_bytes: int = field(default_factory=_half_of_the_memory)
    retry_after_ms: int = 100
    state_dir: Path | None = None
    durability: str = "none"
    checkpoint_interval_s: float = 1.0
    time_to_live_s: int = 0
    max_state_bytes: int = 2**40
    precision: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 1 <= self.num_shards <= _MAX_SHARDS:
            raise StartError(f"--shards is {self.num_shards}; it must be 1 to {_MAX_SHARDS}")
        if self.max_streams < 1:
            raise StartError(f"--max-streams is {self.max_streams}; it must be at least 1")
        if self.idle_limit_s < 0:
            raise StartError(f"--idle-limit is {self.idle_limit_s}; it must be 0 s or more")
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
        if self.time_to_live_s < 0 or (self.time_to_live_s and self.state_dir is None):
            raise StartError(
                f"--time-to-live is {self.time_to_live_s}; it must be 0 s or more, and needs "
                "--state-dir"
            )
        for endpoint in (self.bind, self.advertise):
            if endpoint is not None and endpoint.port + self.num_shards - 1 > 65535:
                raise StartError(f"{endpoint} leaves no port for shard {self.num_shards - 1}")
        if (self.curve_secret_key is None) != (self.curve_clients is None):
            raise StartError(
                "--curve-secret-key and --curve-clients belong together: the one is the server's, "
                "the other says who may connect; 'streamrnn keys NAME' makes both"
            )
        if not self.bind.is_loopback and not self.insecure and not self.has_users:
            raise StartError(
                f"{self.bind} can be reached by other machines, and nothing keeps strangers out: "
                "give keys (--curve-secret-key, --curve-clients), bind 127.0.0.1, or say "
                "--insecure if the network is yours alone"
            )

    @property
    def has_users(self) -> bool:
        """Whether clients need keys, and streams belong to users."""
        return self.curve_secret_key is not None

    @property
    def memory_budget_of_a_shard(self) -> int:
        """The most bytes for the streams of one shard."""
        return self.memory_budget_bytes // self.num_shards

    @property
    def max_streams_of_a_shard(self) -> int:
        """The most open streams of one shard."""
        return -(-self.max_streams // self.num_shards)
