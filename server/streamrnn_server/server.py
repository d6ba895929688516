"""A server: shards in their threads, and Python's part beside them."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import zmq

from streamrnn.engine.cuda import CudaDevice
from streamrnn.errors import DeviceError, ServerError, StartError, StreamRNNError
from streamrnn.kernels.cpu.program import Program
from streamrnn.model.model import Model
from streamrnn_server.access.auth import Guard
from streamrnn_server.access.limits import LimitsFile
from streamrnn_server.config import Endpoint, ServerConfig
from streamrnn_server.control.connections import Connections, bind_router, raise_file_limit
from streamrnn_server.control.dispatcher import Control
from streamrnn_server.control.memory_watch import MemoryWatch
from streamrnn_server.control.messages import Order, command, parse_ask
from streamrnn_server.control.turns import Turns
from streamrnn_server.device import choose_device
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.catalogue import Catalogue
from streamrnn_server.live.table import ModelTable
from streamrnn_server.monitor.health import Health
from streamrnn_server.monitor.monitor import Monitor
from streamrnn_server.shard.gpu.loop import GpuShard, make_devices, max_batch_rows
from streamrnn_server.shard.loop import serve
from streamrnn_server.shard.setup import ShardMemory
from streamrnn_server.shard.structs import AskKind, CommandKind
from streamrnn_server.storage.state_dir import StateDir
from streamrnn_server.warmup import compile_all
from streamrnn_server.worker import Worker

__all__ = ["Server"]

_TELL_EVERY_S = 10.0
_WATCH_EVERY_S = 1.0  # a folder of models
# What wakes `run`, and no signal's number: to look that the shards are alive; that something was
# done in another thread.
_PING, _NEWS = 255, 254
_LOOK_EVERY_S = 0.005  # for what else has come, while much is asked
_ANSWER_WITHIN_S = 2.0  # after a stop, whatever waits
_EXCESS_PART = 5  # of the memory budget: so much more may be held than is accounted for
_LEAST_EXCESS_BYTES = 2**28  # buffers of thousands of connections
_TOLD_COUNTERS = (
    "num_errors_without_words",
    "num_calls_refused",
    "num_too_broken_to_answer",
    "num_extra_frames",
    "num_without_payload",
    "num_dropped_slow_reader",
    "num_dropped_peer_gone",
    "num_dropped_other",
    "num_evicted_idle",
)


class Server:
    """Serves models to streams from its creation until `close`.

    Attributes
    ----------
    endpoints : list of str
        Where clients find each shard.
    control : Control
        Python's part.
    device : str
        What computes the steps: ``cpu`` or ``cuda``.
    metrics_url : str
        Where metrics are; empty if they are not asked for.
    compile_s : float
        Time that compiling took, or loading what was compiled before.

    Raises
    ------
    StartError
        If the address cannot be bound, there is not enough address space, or the device cannot be
        used.
    """

    def __init__(self, models: Mapping[str, Model], config: ServerConfig, log: EventLog) -> None:
        if not models:
            raise StartError("there is no model to serve; name at least one weight file")
        self._config, self._log = config, log
        self._catalogue = Catalogue(config.state_dir)
        models = self._catalogue.with_loaded(models)
        self.device = choose_device(models, config, log)
        self.compile_s = compile_all(log, config.precision, self.device)
        raise_file_limit(log)
        # libzmq numbers clients that have no id from a number of this generator on.
        ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "little"))
        self._context = zmq.Context(io_threads=config.num_shards)
        self._woken, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._pairs: list[zmq.Socket[bytes]] = []
        self._sockets: list[zmq.Socket[bytes]] = []
        self._shards: list[Worker] = []
        self._told: dict[str, int] = {}
        self._turns = Turns()
        self._disk: StateDir | None = None
        self._failure: StreamRNNError | None = None
        self._guard: Guard | None = None
        self._connections = Connections(self._context, log)
        self._monitor: Monitor | None = None
        self._pinged = self._heard = 0  # numbers: what `run` shall pass on, and what it has
        self._ping_lock = threading.Lock()
        self._is_stopping = False
        try:
            if config.metrics is not None:
                self._monitor = Monitor(config.metrics, log)
            if config.curve_secret_key is not None and config.curve_clients is not None:
                limits = LimitsFile(config.user_limits_file, config.user_limits, log)
                paths = (config.curve_secret_key, config.curve_clients)
                self._guard = Guard(self._context, *paths, limits, log)
                self._guard.start(self._fail)
            self._start(models)
        except BaseException:
            if self._disk is not None:
                self._disk.close()
            self._close_sockets(linger_ms=0)
            raise

    def _start(self, models: Mapping[str, Model]) -> None:
        config = self._config
        routers = [self._make_router(config.bind.shard(k)) for k in range(config.num_shards)]
        for router in routers:
            self._connections.watch(router)
        bound = [router.get_string(zmq.LAST_ENDPOINT) for router in routers]
        advertised = config.advertise
        self.endpoints = (
            bound
            if advertised is None
            else [str(advertised.shard(k)) for k in range(config.num_shards)]
        )
        # A GPU's precision is its own; here are the layout of a row and what checks an input.
        precision = config.precision if self.device == "cpu" else "float32"
        programs = {name: Program(model, precision) for name, model in models.items()}
        arithmetics = {name: program.arithmetic for name, program in programs.items()}
        on_gpu: list[list[CudaDevice]] = []
        if self.device == "cuda":
            max_streams = config.max_streams_of_a_shard
            on_gpu = [
                make_devices(models, max_streams, config.precision)
                for _ in range(config.num_shards)
            ]
            arithmetics = dict.fromkeys(models, on_gpu[0][0].arithmetic)
        capacity = config.max_models_from(len(models))
        table = ModelTable(models, programs, arithmetics, capacity)
        table.apply(self._catalogue.content, self._log)
        if self.device == "cuda" and (config.models_dir is not None or table.swaps):
            raise StartError(
                "--models-dir, and models whose streams are swapped to another version "
                f"({', '.join(table.swaps) or 'none'}), need a CPU: --device cpu"
            )
        disks: list[zmq.Socket[bytes] | None] = [None] * config.num_shards
        journals, pairs = list(disks), []
        if config.state_dir is not None:
            ends = [self._make_pair(f"disk-{k}") for k in range(config.num_shards)]
            disks = [theirs for _, theirs in ends]
            ours = [our for our, _ in ends]
            if config.keeps_journal and self.device == "cpu":
                pairs = [self._make_pair(f"journal-{k}") for k in range(config.num_shards)]
                journals = [theirs for _, theirs in pairs]
            args = (config, table.served, programs, table.templates, ours, self._log)
            self._disk = StateDir(*args, [our for our, _ in pairs])
        self.control = Control(
            config,
            table,
            self.device,
            self.endpoints,
            self._log,
            self._disk,
            self._connections,
            self._catalogue,
            lambda: self._wake_with(_NEWS),
        )
        if self._guard is not None:
            self.control.limits_of = self._guard.limits.of
        loops: list[Callable[[], None]] = []
        for k, router in enumerate(routers):
            our, pair = self._make_pair(f"shard-{k}")
            self._pairs.append(our)
            own = {name: program.for_shard() for name, program in programs.items()}
            gpu_rows = max_batch_rows(on_gpu[k]) if on_gpu else 0
            valid_keys = None if self._guard is None else self._guard.keys.is_valid
            sockets = (router, pair, disks[k], self.endpoints, gpu_rows, valid_keys, journals[k])
            shard = ShardMemory(config, k, own, *sockets)
            shard.set_models(*table.for_shard())
            if self._disk is not None:
                shard.struct["incarnation"] = self._disk.first_incarnation
            if self._guard is not None and shard.users is not None:
                self._guard.limits.add_shard(shard.users)
            self.control.shards.append(shard)
            if on_gpu:
                gpu_shard = GpuShard(shard, on_gpu[k])
                loops.append(gpu_shard.serve)
            else:
                loops.append(partial(serve, shard.address))
        self._connections.start(self._memory_watch(), self._fail)
        if self._disk is not None:
            self._disk.start(self._fail)
        for k, loop in enumerate(loops):
            self._shards.append(Worker(f"shard-{k}", loop, patience_s=math.inf))
            self._shards[k].start(self._fail)
        if self.control.diagnostics is not None:
            self.control.diagnostics.start(self._fail)
        if self._monitor is not None:
            self._monitor.start(
                self.control, self._disk, self.health(), lambda: self._is_stopping, self._fail
            )

    @property
    def metrics_url(self) -> str:
        """Where metrics are; empty if they are not asked for."""
        return "" if self._monitor is None else self._monitor.url

    def health(self) -> Health:
        """Return what looks whether threads move; each is for one thread."""
        return Health(self._ping, self._heard_by, self._workers)

    def _ping(self) -> int:
        """Ask `run`, and by it all shards, to say that they have heard a new number; return it."""
        with self._ping_lock:
            self._pinged = number = self._pinged + 1
        self._wake_with(_PING)
        return number

    def _wake_with(self, number: int) -> None:
        with contextlib.suppress(OSError):  # it was asked often enough, or has ended
            self._wake.send(bytes([number]))

    def _heard_by(self) -> dict[str, int]:
        """Return the last number that each thread has heard; none once they end."""
        if self._is_stopping:
            return {}
        beats = [int(each.struct["heartbeat"]) for each in self.control.shards]
        return {"control": self._heard} | {f"shard-{k}": beat for k, beat in enumerate(beats)}

    def _workers(self) -> list[Worker]:
        """Return the threads of Python's, and those of shards, unless they end."""
        if self._is_stopping:
            return []
        workers = [*self._shards, self._connections.worker]
        if self.control.diagnostics is not None:
            workers.append(self.control.diagnostics.worker)
        if self._guard is not None:
            workers.append(self._guard.worker)
        if self._disk is not None:
            workers += [self._disk.saver.worker, *(each.worker for each in self._disk.journals)]
        return workers

    def _make_router(self, endpoint: Endpoint) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        self._sockets.append(router)
        if self._guard is not None:
            self._guard.protect(router)
        bind_router(router, self._config, endpoint)
        return router

    def _make_pair(self, name: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """Make both ends of a PAIR: Python's and a shard's."""
        ours, theirs = (self._context.socket(zmq.PAIR) for _ in range(2))
        for end in (ours, theirs):
            end.set_hwm(0)  # what goes through is limited where it is sent
            end.setsockopt(zmq.LINGER, 0)
        self._sockets += [ours, theirs]
        ours.bind(f"inproc://{name}")
        theirs.connect(f"inproc://{name}")
        return ours, theirs

    def _memory_watch(self) -> MemoryWatch:
        """Return what sees to it that all of the process stays near its memory budget."""
        most = max(self._config.memory_budget_bytes // _EXCESS_PART, _LEAST_EXCESS_BYTES)
        return MemoryWatch(most, self.control.memory_used_bytes)

    def stop(self) -> None:
        """Ask `run` to end. From any thread, also from a signal's handler."""
        self._wake_with(0)

    @property
    def wake_file(self) -> int:
        """A file that ends `run` when something is written to it, for `signal.set_wakeup_fd`."""
        return self._wake.fileno()

    def _fail(self, thread: str, error: BaseException) -> None:
        """End `run`, for a thread of the server has ended: without it nothing can be promised."""
        self._failure = ServerError(
            f"the thread {thread!r} has ended ({type(error).__name__}); the log says where"
        )
        try:
            if isinstance(error, DeviceError):
                self._failure = error
            else:
                event = "a thread has ended: so does the server"
                self._log.write_fault(event, error, thread=thread)
        finally:
            self.stop()

    def run(self) -> None:
        """Do Python's part until `stop`; then answer what has arrived, and end the shards.

        Raises
        ------
        DeviceError, ServerError
            If a GPU has failed, or a thread has ended. Then nothing can be done but to end the
            process: its streams go on from what is on disk.
        """
        poller = zmq.Poller()
        poller.register(self._woken, zmq.POLLIN)
        for pair in self._pairs:
            poller.register(pair, zmq.POLLIN)
        turns, running, stop_at_s = self._turns, set(self._pairs), math.inf
        drained: list[zmq.Socket[bytes]] = []
        tell_at_s = time.monotonic() + _TELL_EVERY_S
        watch_at_s = 0.0 if self._config.watch_models else math.inf
        while running:
            next_s = min(tell_at_s, watch_at_s)
            timeout_s = 0.0 if turns else max(0.0, next_s - time.monotonic())
            ready = dict(poller.poll(math.ceil(timeout_s * 1e3)))
            if self._failure is not None:
                raise self._failure
            if self._woken.fileno() in ready and self._take_wakes() and stop_at_s == math.inf:
                self._is_stopping = True
                stop_at_s = time.monotonic() + _ANSWER_WITHIN_S
                self._log.write("info", "stopping: answering what has arrived")
                for pair in self._pairs:
                    pair.send_multipart(command(CommandKind.STOP))
            for shard, pair in enumerate(self._pairs):
                if pair in ready and not self._take_asks(shard, pair):
                    drained.append(pair)
            self._answer_some(stop_at_s)
            if not turns:
                for pair in drained:
                    pair.send_multipart(command(CommandKind.END))
                running.difference_update(drained)
                drained.clear()
            if time.monotonic() >= tell_at_s:
                tell_at_s += _TELL_EVERY_S
                self._tell()
            if time.monotonic() >= watch_at_s:
                watch_at_s = time.monotonic() + _WATCH_EVERY_S
                self._send(self.control.watch())
        for worker in self._shards:
            worker.join()
        if self._disk is not None:
            self._disk.close()

    def _take_wakes(self) -> bool:
        """Pass pings on to the shards, go on with news; return whether all is to stop."""
        wakes = self._woken.recv(4096)  # listened to after a stop too: a thread may fail yet
        if _PING in wakes and not self._is_stopping:
            self._heard = number = self._pinged
            for pair in self._pairs:
                pair.send_multipart(command(CommandKind.PING, {"seq": number}))
        if _NEWS in wakes:
            self._send(self.control.news())
        return bool(wakes.strip(bytes([_PING, _NEWS])))

    def _send(self, orders: Iterable[Order]) -> None:
        for order in orders:
            self._pairs[order.shard].send_multipart(order.frames)

    def _take_asks(self, shard: int, pair: zmq.Socket[bytes]) -> bool:
        """Take what one shard asks; False once it has no more."""
        try:
            while True:
                ask = parse_ask(*pair.recv_multipart(zmq.DONTWAIT))
                if ask.ask == AskKind.DRAINED:
                    return False
                if ask.ask == AskKind.LEFT:  # before any look-up that was asked for after it
                    self.control.answer(shard, ask)
                    continue
                user = self.control.shards[shard].user(ask.owner)
                self._turns.add(user or (shard, ask.client), shard, ask)
        except zmq.Again:
            return True

    def _answer_some(self, stop_at_s: float) -> None:
        """Answer some of what was asked, before it is looked whether more has come.

        After a stop, what waits is dropped when its time is over.
        """
        look_again_at_s = time.monotonic() + _LOOK_EVERY_S
        now_s = 0.0
        while self._turns and now_s < look_again_at_s:
            shard, ask = self._turns.take()
            now_s = time.monotonic()
            if now_s >= stop_at_s:
                self.control.drop(shard, ask)
                continue
            self._send(self.control.answer(shard, ask))

    def _tell(self) -> None:
        """Log what was dropped or refused since the last time."""
        self._log.say_dropped()
        try:
            stats = self.control.stats()
        except Exception as error:
            self._log.write_fault("the counters cannot be told", error)
            return
        new = {
            name: stats[name] - self._told.get(name, 0)
            for name in _TOLD_COUNTERS
            if stats[name] != self._told.get(name, 0)
        }
        if new:
            self._told.update({name: stats[name] for name in new})
            self._log.write("warning", "dropped or refused", **new)

    def close(self) -> None:
        """Close all sockets, after `run` has returned; replies on their way may still leave."""
        if self.control.diagnostics is not None:
            self.control.diagnostics.stop()
        self.control.stop()
        for shard in self.control.shards:
            shard.close()
        self._close_sockets()

    def _close_sockets(self, linger_ms: int | None = None) -> None:
        for each in self._sockets:
            each.close(linger_ms)
        self._connections.stop()
        if self._monitor is not None:
            self._monitor.stop()
        if self._guard is not None:
            self._guard.stop()
        self._context.term()
        self._woken.close()
        self._wake.close()
