"""Who may connect: libzmq encrypts with CURVE and asks here, by ZAP, about each client's key."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from streamrnn_server.access.keys import ClientKeys, load_secret_key
from streamrnn_server.access.limits import LimitsFile
from streamrnn_server.event_log import EventLog
from streamrnn_server.worker import OnFailure, Worker

__all__ = ["Guard"]

_DOMAIN = b"streamrnn"
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_REFRESH_MS = 1000  # so soon a connection of a key that was removed is refused


class Guard:
    """Lets clients in whose public keys are known.

    Attributes
    ----------
    keys : ClientKeys
        Those of now.
    limits : LimitsFile
        What users may take.

    Raises
    ------
    StartError
        If the server's key cannot be used, or no client's, or what users may take.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        secret_key: Path,
        clients: Path,
        limits: LimitsFile,
        log: EventLog,
    ) -> None:
        self.limits = limits
        self._public, self._secret = load_secret_key(secret_key)
        self.keys, self._log = ClientKeys(clients, log), log
        self._socket = context.socket(zmq.REP)
        self._woken, self._wake = socket.socketpair()
        self.worker = Worker("keys", self._serve)

    def start(self, on_failure: OnFailure) -> None:
        """Begin; ``on_failure`` is called if the thread ends by an exception."""
        self._socket.bind(_ZAP_ENDPOINT)
        self.worker.start(on_failure)

    def protect(self, socket: zmq.Socket[Any]) -> None:
        """Let a socket take clients with keys only."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
        socket.zap_domain = _DOMAIN
        # Otherwise libzmq lets everybody in when nobody answers.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def stop(self) -> None:
        """End the thread."""
        self._wake.send(b"\0")
        self.worker.join()
        self._socket.close(0)
        self._wake.close()
        self._woken.close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._woken, zmq.POLLIN)
        rested_at_s = 0.0
        while True:
            ready = dict(poller.poll(_REFRESH_MS))
            self.worker.beat()
            if self._woken.fileno() in ready:
                return
            began_s = time.monotonic()
            try:
                if began_s >= rested_at_s:
                    self.keys.refresh()
                    # With very many files, not for more than half of the time.
                    rested_at_s = 2 * time.monotonic() - began_s
            except Exception as error:
                self.keys.forget()  # what cannot be known lets nobody in
                self._log.write_fault("the clients' keys cannot be read again", error)
            try:
                self.limits.refresh()
            except Exception as error:
                self._log.write_fault("the users' limits cannot be read again", error)
            if self._socket in ready:
                self._socket.send_multipart(self._answer(self._socket.recv_multipart()))

    def _answer(self, request: list[bytes]) -> list[bytes]:
        """Return the ZAP reply: version, request id, status, text, user id, metadata."""
        user_id = b""
        try:
            user_id = self._user_id(*request)
        except Exception as error:
            self._log.write_fault("a client's key could not be judged", error)
        status = [b"200", b"OK"] if user_id else [b"400", b"the key is not known"]
        return [_ZAP_VERSION, request[1] if len(request) > 1 else b"", *status, user_id, b""]

    def _user_id(
        self,
        version: bytes,
        request_id: bytes,
        domain: bytes,
        address: bytes,
        identity: bytes,
        mechanism: bytes,
        *credentials: bytes,
    ) -> bytes:
        """Return what a shard is told of each message of this connection; empty: it is refused."""
        if (version, domain, mechanism) != (_ZAP_VERSION, _DOMAIN, b"CURVE"):
            return b""
        (key,) = credentials
        public = z85.encode(key)
        user_id = self.keys.user_id(public)
        if not user_id:
            self._log.write(
                "warning", "a client with an unknown key was refused", key=public.decode()
            )
        return user_id
