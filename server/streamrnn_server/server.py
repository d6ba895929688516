"""A server: shards in their threads, and Python's part beside them."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import zmq

from streamrnn.engine.cuda import CudaDevice
from streamrnn.errors import DeviceError, ServerError, StartError
from streamrnn.kernels.cpu.program import Program
from streamrnn.model.model import Model
from streamrnn_server.access.auth import Guard
from streamrnn_server.access.limits import LimitsFile
from streamrnn_server.config import Endpoint, ServerConfig
from streamrnn_server.connections.connections import Connections, bind_router, raise_file_limit
from streamrnn_server.connections.memory_watch import MemoryWatch
from streamrnn_server.control.dispatcher import Control
from streamrnn_server.control.loop import ControlLoop
from streamrnn_server.control.wakes import Wakes
from streamrnn_server.event_log import EventLog
from streamrnn_server.live.catalogue import Catalogue
from streamrnn_server.live.rules import apply_content
from streamrnn_server.live.table import ModelTable
from streamrnn_server.monitor.health import Health
from streamrnn_server.monitor.monitor import Monitor
from streamrnn_server.shard.gpu.loop import GpuShard, make_devices, max_batch_rows
from streamrnn_server.shard.loop import serve
from streamrnn_server.shard.setup import ShardMemory
from streamrnn_server.startup.device import choose_device
from streamrnn_server.startup.warmup import compile_all
from streamrnn_server.storage.state_dir import StateDir
from streamrnn_server.worker import Worker

__all__ = ["Server"]

_Ends = list[zmq.Socket[bytes] | None]

_EXCESS_PART = 5  # of the memory budget: so much more may be held than is accounted for
_LEAST_EXCESS_BYTES = 2**28  # buffers of thousands of connections


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
        self._wakes = Wakes()
        self._pairs: list[zmq.Socket[bytes]] = []
        self._sockets: list[zmq.Socket[bytes]] = []
        self._shards: list[Worker] = []
        self._disk: StateDir | None = None
        self._guard: Guard | None = None
        self._connections = Connections(self._context, log)
        self._monitor: Monitor | None = None
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
        """Build everything that serves, from what is bound to what runs, then start the threads."""
        config = self._config
        routers = [self._make_router(config.bind.shard(k)) for k in range(config.num_shards)]
        self.endpoints = self._endpoints_of(routers)
        # A GPU's precision is its own; here are the layout of a row and what checks an input.
        precision = config.precision if self.device == "cpu" else "float32"
        programs = {name: Program(model, precision) for name, model in models.items()}
        on_gpu = self._make_gpu_devices(models)
        table = self._make_table(models, programs, on_gpu)
        disks, journals = self._open_state_dir(table, programs)
        self.control = Control(
            config,
            table,
            self.device,
            self.endpoints,
            self._log,
            self._disk,
            self._connections,
            self._catalogue,
            self._wakes.news,
            None if self._guard is None else self._guard.limits.of,
        )
        loops: list[Callable[[], None]] = []
        for k, router in enumerate(routers):
            own = {name: program.for_shard() for name, program in programs.items()}
            gpu_rows = max_batch_rows(on_gpu[k]) if on_gpu else 0
            shard = self._make_shard(k, own, router, disks[k], journals[k], gpu_rows)
            shard.set_models(*table.for_shard())
            self.control.shards.append(shard)
            if on_gpu:
                loops.append(GpuShard(shard, on_gpu[k]).serve)
            else:
                loops.append(partial(serve, shard.address))
        watches = config.watch_models
        self._loop = ControlLoop(self.control, self._pairs, self._wakes, self._log, watches)
        self._start_threads(loops)

    def _endpoints_of(self, routers: Sequence[zmq.Socket[bytes]]) -> list[str]:
        """Return where clients find each shard."""
        advertised = self._config.advertise
        if advertised is not None:
            return [str(advertised.shard(k)) for k in range(len(routers))]
        return [router.get_string(zmq.LAST_ENDPOINT) for router in routers]

    def _make_gpu_devices(self, models: Mapping[str, Model]) -> list[list[CudaDevice]]:
        """Return each shard's devices; nothing where a CPU computes."""
        if self.device != "cuda":
            return []
        num_shards, max_streams = self._config.num_shards, self._config.max_streams_of_a_shard
        args = models, max_streams, self._config.precision
        return [make_devices(*args) for _ in range(num_shards)]

    def _make_table(
        self,
        models: Mapping[str, Model],
        programs: Mapping[str, Program],
        on_gpu: list[list[CudaDevice]],
    ) -> ModelTable:
        """Return the models that are served, with what the catalogue on disk says of them."""
        arithmetics = {name: program.arithmetic for name, program in programs.items()}
        if on_gpu:
            arithmetics = dict.fromkeys(models, on_gpu[0][0].arithmetic)
        capacity = self._config.max_models_from(len(models))
        table = ModelTable(models, programs, arithmetics, capacity, self._config.history_of)
        apply_content(table, self._catalogue.content, self._log)
        if on_gpu and (self._config.models_dir is not None or table.swaps):
            raise StartError(
                "--models-dir, and models whose streams are swapped to another version "
                f"({', '.join(table.swaps) or 'none'}), need a CPU: --device cpu"
            )
        return table

    def _open_state_dir(self, table: ModelTable, programs: Mapping[str, Program]) -> list[_Ends]:
        """Open the state directory, if there is one; return the shards' ends to its writers.

        Returns
        -------
        list of list of (zmq.Socket or None)
            For checkpoints, and for journals.
        """
        config, numbers = self._config, range(self._config.num_shards)
        disks: _Ends = [None for _ in numbers]
        journals = list(disks)
        if config.state_dir is None:
            return [disks, journals]
        pairs = [self._make_pair(f"disk-{k}") for k in numbers]
        disks = [theirs for _, theirs in pairs]
        journal_pairs = []
        if config.keeps_journal and self.device == "cpu":
            journal_pairs = [self._make_pair(f"journal-{k}") for k in numbers]
            journals = [theirs for _, theirs in journal_pairs]
        self._disk = StateDir(
            *(config, table.served, programs, table.templates),
            *([ours for ours, _ in pairs], self._log, [ours for ours, _ in journal_pairs]),
        )
        self._catalogue.take_over()
        return [disks, journals]

    def _make_shard(
        self,
        k: int,
        models: Any,
        router: zmq.Socket[bytes],
        disk: zmq.Socket[bytes] | None,
        journal: zmq.Socket[bytes] | None,
        gpu_rows: int,
    ) -> ShardMemory:
        ours, theirs = self._make_pair(f"shard-{k}")
        self._pairs.append(ours)
        valid_keys = None if self._guard is None else self._guard.keys.is_valid
        sockets = (router, theirs, disk, self.endpoints, gpu_rows, valid_keys, journal)
        shard = ShardMemory(self._config, k, models, *sockets)
        if self._disk is not None:
            shard.struct["incarnation"] = self._disk.first_incarnation
        if self._guard is not None and shard.users is not None:
            self._guard.limits.add_shard(shard.users)
        return shard

    def _start_threads(self, loops: Sequence[Callable[[], None]]) -> None:
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
                self.control, self._disk, self.health(), lambda: self._loop.is_stopping, self._fail
            )

    @property
    def metrics_url(self) -> str:
        """Where metrics are; empty if they are not asked for."""
        return "" if self._monitor is None else self._monitor.url

    def health(self) -> Health:
        """Return what looks whether threads move; each is for one thread."""
        return Health(self._wakes.ping, self._heard_by, self._workers)

    def _heard_by(self) -> dict[str, int]:
        """Return the last number that each thread has heard; none once they end."""
        if self._loop.is_stopping:
            return {}
        beats = [int(each.struct["heartbeat"]) for each in self.control.shards]
        heard = {f"shard-{k}": beat for k, beat in enumerate(beats)}
        return {"control": self._wakes.heard} | heard

    def _workers(self) -> list[Worker]:
        """Return the threads of Python's, and those of shards, unless they end."""
        if self._loop.is_stopping:
            return []
        workers = [*self._shards, self._connections.worker]
        if self.control.diagnostics is not None:
            workers += [self.control.diagnostics.worker, self.control.diagnostics.shadow.worker]
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
        self._connections.watch(router)
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
        self._wakes.stop()

    @property
    def wake_file(self) -> int:
        """A file that ends `run` when something is written to it, for `signal.set_wakeup_fd`."""
        return self._wakes.file

    def _fail(self, thread: str, error: BaseException) -> None:
        """End `run`, for a thread of the server has ended: without it nothing can be promised."""
        self._wakes.failure = ServerError(
            f"the thread {thread!r} has ended ({type(error).__name__}); the log says where"
        )
        try:
            if isinstance(error, DeviceError):
                self._wakes.failure = error
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
        self._loop.run()
        for worker in self._shards:
            worker.join()
        if self._disk is not None:
            self._disk.close()

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
        self._wakes.close()
