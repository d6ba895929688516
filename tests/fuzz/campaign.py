"""One attack on one server: processes, what is watched meanwhile, and the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from zmq.auth import create_certificates, load_certificate

from streamrnn_bench.child_process import start_child
from streamrnn_bench.report.results import BenchError
from streamrnn_bench.server.processes import anonymous_kib
from tests.fuzz.messages import NUM_INPUTS
from tests.support.models import random_model
from tests.support.program import free_ports, streamrnn

__all__ = ["SCENARIOS", "Findings", "Scenario", "attack"]

_READY_WITHIN_S = 900  # a cache of its own: all is compiled
_STOP_WITHIN_S = 60
_SAMPLE_S = 0.2
_MAX_OVER_BUDGET = 1.2
_BUDGET_BYTES = 64 * 2**20
# libzmq's own assertions end the process; nothing of ours can prevent them (docs/security.md).
_LIBZMQ_ABORT = re.compile(r"Assertion failed: .*\((?:\S*/)?src/\w+\.[ch]pp:\d+\)")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A way to start the server, and who attacks it.

    ``may_abort``: peers also do what libzmq 4.3.5 answers with an abort; the server then runs
    under ``--supervise``, with a state directory.
    """

    name: str
    options: tuple[str, ...] = ()
    has_state: bool = False
    has_keys: bool = False
    may_abort: bool = False
    budget_bytes: int = 0


SCENARIOS = (
    Scenario("plain"),
    Scenario("state", ("--checkpoint-interval", "0.2", "--idle-limit", "1"), has_state=True),
    Scenario(
        "small budget",
        ("--checkpoint-interval", "0.2", "--max-streams", "10000", "--memory-budget", "64M"),
        has_state=True,
        budget_bytes=_BUDGET_BYTES,
    ),
    Scenario("keys", ("--checkpoint-interval", "0.2"), has_state=True, has_keys=True),
    Scenario(
        "supervised",
        ("--checkpoint-interval", "0.2", "--supervise"),
        has_state=True,
        may_abort=True,
    ),
)


@dataclasses.dataclass
class Findings:
    """What came of one attack."""

    scenario: str
    num_messages: int
    seconds: float
    replies: dict[str, int]
    victim: dict[str, float]
    num_libzmq_aborts: int
    max_held_mib: float  # anonymous memory of the server above what it had when it was ready
    faults: list[str]  # empty: all is well

    @property
    def line(self) -> str:
        """What a person wants to know of it."""
        wrong = self.victim.get("wrong", 0)
        return (
            f"{self.scenario}: {self.num_messages:,} messages in {self.seconds:.0f} s; victim: "
            f"{self.victim.get('outputs', 0):,} outputs, {wrong} wrong; at most "
            f"{self.max_held_mib:.0f} MiB held; {self.num_libzmq_aborts} aborts of libzmq; "
            + ("; ".join(self.faults) or "no fault")
        )


class _Server:
    """``streamrnn serve`` in one scenario, and what was seen of it."""

    def __init__(self, scenario: Scenario, directory: Path, model: Path) -> None:
        self.port = free_ports(1)
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self._ready, self._log_path = directory / "ready", directory / "log"
        command = streamrnn("serve", f"m={model}", "--bind", self.endpoint, *scenario.options)
        command += ["--ready-file", str(self._ready)]
        if scenario.has_state:
            command += ["--state-dir", str(directory / "state")]
        if scenario.has_keys:
            command += ["--curve-secret-key", str(directory / "server.key_secret")]
            command += ["--curve-clients", str(directory / "clients")]
        self._log = self._log_path.open("wb")
        self.process = start_child(command, stdout=self._log, stderr=self._log)
        give_up_s = time.monotonic() + _READY_WITHIN_S
        while not self._ready.exists():
            if self.process.poll() is not None or time.monotonic() > give_up_s:
                raise RuntimeError(f"the server did not start: {self.text()}")
            time.sleep(0.02)
        self._before_kib = self._memory_kib()
        self.max_held_kib = 0

    def _memory_kib(self) -> int:
        # Under --supervise the ready file names another process after every restart.
        try:
            return anonymous_kib(json.loads(self._ready.read_text())["pid"])
        except (OSError, ValueError, BenchError):
            return 0

    def look(self) -> None:
        """Take a sample of its memory."""
        self.max_held_kib = max(self.max_held_kib, self._memory_kib() - self._before_kib)

    def text(self) -> str:
        """Everything that it has logged."""
        return self._log_path.read_text(errors="replace")

    def stop(self) -> list[str]:
        """Stop it, and return what was wrong with its end."""
        faults = []
        if self.process.poll() is not None:
            faults.append(f"the server ended with {self.process.returncode}: {self.text()[-2000:]}")
        else:
            self.process.send_signal(signal.SIGTERM)
            try:
                code = self.process.wait(_STOP_WITHIN_S)
                if code != 0:
                    faults.append(f"the server stopped with {code}: {self.text()[-2000:]}")
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                faults.append(f"the server did not stop within {_STOP_WITHIN_S} s")
        self._log.close()
        return faults


@contextlib.contextmanager
def _victim(told: dict[str, Any]) -> Iterator[Any]:
    process = start_child(
        [sys.executable, "-m", "tests.fuzz.victim", json.dumps(told)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the victim could not connect")
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _keys(directory: Path) -> dict[str, Any]:
    """Make keys of a server and two users; return what victim and attacker need of them."""
    for name in ("server", "victim", "attacker"):
        create_certificates(directory, name)
    (directory / "clients").mkdir()
    for name in ("victim", "attacker"):
        text = (directory / f"{name}.key").read_bytes()
        (directory / "clients" / f"{name}.key").write_bytes(text)
    for path in directory.glob("*.key_secret"):
        path.chmod(0o600)
    server, _ = load_certificate(directory / "server.key")
    public, secret = load_certificate(directory / "attacker.key_secret")
    assert secret is not None
    curve = {"public": public.decode(), "secret": secret.decode(), "server": server.decode()}
    options = {
        "curve_key": str(directory / "victim.key_secret"),
        "server_key": str(directory / "server.key"),
    }
    return {"curve": curve, "options": options}


def attack(
    scenario: Scenario, directory: Path, num_messages: int, seed: int, limit_s: float = 1e9
) -> Findings:
    """Attack one server until so many messages were sent, or for so long.

    The victim's outputs are compared meanwhile; the server must live, stop when it is told to, and
    hold no more than its budget and a fifth.
    """
    model = directory / "m.safetensors"
    random_model(np.random.default_rng(seed), [("lstm", 24)], NUM_INPUTS, 2).save(model)
    told: dict[str, Any] = {"model": str(model), "seed": seed, "limit_s": limit_s}
    if scenario.has_keys:
        told |= _keys(directory)
    server = _Server(scenario, directory, model)
    told |= {"endpoint": server.endpoint, "may_abort": scenario.may_abort}
    began_s = time.monotonic()
    faults: list[str] = []
    replies: Counter[str] = Counter()
    num_sent, found = 0, {}
    try:
        with _victim(told) as victim:
            ways = {"dealer": num_messages * 9 // 10, "raw": num_messages // 10}
            attackers = [
                start_child(
                    [
                        *(sys.executable, "-m", "tests.fuzz.attacker"),
                        json.dumps({**told, "way": way, "num_messages": num}),
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for way, num in ways.items()
            ]
            while any(each.poll() is None for each in attackers):
                server.look()
                if victim.poll() is not None or server.process.poll() is not None:
                    for each in (*attackers, victim):
                        each.kill()
                time.sleep(_SAMPLE_S)
            for each in attackers:
                out, _ = each.communicate()
                if each.returncode != 0:
                    faults.append(f"an attacker ended with {each.returncode}")
                    continue
                said = json.loads(out)
                num_sent += said["num_messages"]
                replies.update(said["replies"])
            server.look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                out, _ = victim.communicate(timeout=_STOP_WITHIN_S)
                if victim.returncode == 0:
                    found = json.loads(out)
            if not found:
                faults.append("the victim did not come through")
    finally:
        faults += server.stop()
    num_aborts = len(_LIBZMQ_ABORT.findall(server.text()))
    if num_aborts and not scenario.may_abort:
        faults.append(f"libzmq aborted {num_aborts} times")
    if found.get("wrong"):
        faults.append(f"{found['wrong']} wrong outputs")
    held_mib = server.max_held_kib / 1024
    if scenario.budget_bytes and held_mib > _MAX_OVER_BUDGET * scenario.budget_bytes / 2**20:
        faults.append(f"{held_mib:.0f} MiB held, of {scenario.budget_bytes / 2**20:.0f}")
    seconds = time.monotonic() - began_s
    counted = dict(replies.most_common())
    return Findings(scenario.name, num_sent, seconds, counted, found, num_aborts, held_mib, faults)
