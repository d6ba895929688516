"""Who may connect: CURVE keys, and the user that each client's key stands for.

Keys are the files of `zmq.auth`: NAME.key holds a public key, NAME.key_secret both. The name of a
client's public key file is the name of its user. libzmq encrypts and checks; its ZAP handler is
that of pyzmq, in a thread of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq
from zmq.auth import load_certificate
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from streamrnn.errors import StartError
from streamrnn_server.config import MAX_USER_NAME_BYTES
from streamrnn_server.event_log import EventLog

__all__ = ["Guard", "load_secret_key"]

_SUFFIX = ".key"
_DOMAIN = "streamrnn"


def load_secret_key(path: Path) -> tuple[bytes, bytes]:
    """Read a server's key file.

    Returns
    -------
    public, secret : bytes
        Z85, 40 characters each.

    Raises
    ------
    StartError
        If there is no secret key in it.
    """
    public, secret = _load(path)
    if secret is None:
        raise StartError(
            f"{path} holds no secret key; name the .key_secret file that 'streamrnn keys' wrote"
        )
    return public, secret


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        return load_certificate(path)
    except (OSError, ValueError) as error:
        raise StartError(f"{path} is no key file ({error}); 'streamrnn keys' makes them") from error


class _Users:
    """The clients' public keys: a directory that may change, or one file."""

    def __init__(self, location: Path) -> None:
        self._location = location
        self._read_at_ns = -1
        self._names: dict[bytes, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the keys again if their directory has changed.

        Raises
        ------
        StartError
            If there is none, or one cannot be used.
        """
        try:
            changed_ns = self._location.stat().st_mtime_ns
        except OSError as error:
            raise StartError(f"cannot read --curve-clients {self._location}: {error}") from error
        if changed_ns == self._read_at_ns:
            return
        files = [self._location]
        if self._location.is_dir():
            files = sorted(self._location.glob(f"*{_SUFFIX}"))
        names: dict[bytes, str] = {}
        for file in files:
            public, name = _load(file)[0], file.name.removesuffix(_SUFFIX)
            if not 1 <= len(name.encode()) <= MAX_USER_NAME_BYTES:
                raise StartError(
                    f"{file}: a user's name has 1 to {MAX_USER_NAME_BYTES} bytes of UTF-8"
                )
            if public in names:
                raise StartError(
                    f"{file} holds the same key as {names[public]}{_SUFFIX}: whose is it?"
                )
            names[public] = name
        if not names:
            raise StartError(
                f"--curve-clients {self._location} holds no public key (NAME{_SUFFIX}): nobody "
                "could connect; 'streamrnn keys NAME' makes one"
            )
        self._names, self._read_at_ns = names, changed_ns

    def name(self, public: bytes) -> str | None:
        return self._names.get(public)


class Guard:
    """Lets clients in whose public keys are known.

    Raises
    ------
    StartError
        If a key cannot be used.
    """

    def __init__(
        self, context: zmq.Context[Any], secret_key: Path, clients: Path, log: EventLog
    ) -> None:
        self._public, self._secret = load_secret_key(secret_key)
        self._users, self._log = _Users(clients), log
        self._authenticator = _Authenticator(context, self)
        self._authenticator.configure_curve_callback(_DOMAIN, credentials_provider=self)
        self._authenticator.start()

    def protect(self, socket: zmq.Socket[Any]) -> None:
        """Let a socket take clients with keys only."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
        socket.zap_domain = _DOMAIN.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        """Tell whether a key is known; what pyzmq's authenticator calls."""
        try:
            self._users.refresh()
        except StartError as error:  # what was read before still counts
            self._log.write("error", "the clients' keys cannot be read again", reason=str(error))
        is_known = self._users.name(key) is not None
        if not is_known:
            self._log.write("warning", "a client with an unknown key was refused", key=key.decode())
        return is_known

    def user(self, public: bytes) -> str:
        """Return whose a key is that has been accepted.

        Returns
        -------
        str
            The user's name.
        """
        return self._users.name(public) or ""

    def stop(self) -> None:
        """End the thread."""
        self._authenticator.stop()


class _Authenticator(ThreadAuthenticator):
    """Calls a client by the name of its key file."""

    def __init__(self, context: zmq.Context[Any], guard: Guard) -> None:
        super().__init__(context)
        self._guard = guard

    def curve_user_id(self, client_public_key: bytes) -> str:
        return self._guard.user(z85.encode(client_public_key))
