"""The options of a client, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from os import PathLike
from os.path import exists
from typing import NamedTuple

from zmq.auth import load_certificate

from streamrnn_client._session.replay_log import MAX_KEPT_BYTES, MAX_KEPT_STEPS
from streamrnn_client.errors import BadParams

__all__ = ["Keys", "Options", "load_keys"]

_KEY_LENGTH = 40  # of a key in Z85


class Keys(NamedTuple):
    """CURVE keys, Z85 of 40 characters each."""

    public: bytes
    secret: bytes
    server: bytes


def load_keys(
    curve_key: str | PathLike[str] | None, server_key: str | PathLike[str] | None
) -> Keys | None:
    """Read the keys that a client is given, both or none.

    Raises `BadParams` if one is missing, or is no such key.
    """
    if curve_key is None and server_key is None:
        return None
    if curve_key is None or server_key is None:
        raise BadParams(
            "curve_key and server_key belong together: the one is yours (NAME.key_secret), the "
            "other the server's public one (NAME.key)"
        )
    public, secret = _load_file(curve_key)
    if secret is None:
        raise BadParams(f"{curve_key} holds no secret key; name the .key_secret file")
    mode = os.stat(curve_key).st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise BadParams(
            f"{curve_key} is secret, and others than its owner can use it (mode {mode:04o}): "
            f"'chmod 600 {curve_key}'; if they have read it, ask for a new one"
        )
    if isinstance(server_key, str) and len(server_key) == _KEY_LENGTH and not exists(server_key):
        return Keys(public, secret, server_key.encode())
    return Keys(public, secret, _load_file(server_key)[0])


def _load_file(path: str | PathLike[str]) -> tuple[bytes, bytes | None]:
    try:
        return load_certificate(path)
    except (OSError, ValueError) as error:
        raise BadParams(f"{path} is no key file: {error}") from error


@dataclass(frozen=True)
class Options:
    """Checked arguments of a client; seconds."""

    address: str
    timeout_s: float = 5.0
    resend_s: float = 0.5
    max_kept_steps: int = MAX_KEPT_STEPS
    max_kept_bytes: int = MAX_KEPT_BYTES
    keys: Keys | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.address, str) or "://" not in self.address:
            raise BadParams(
                f"the address is {self.address!r}; expected is for instance 'tcp://127.0.0.1:7070'"
            )
        for name in ("timeout_s", "resend_s"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value < 1e6:
                raise BadParams(f"{name} is {value!r}; it must be a number of seconds above 0")
        for name in ("max_kept_steps", "max_kept_bytes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise BadParams(f"{name} is {value!r}; it must be a whole number from 1")
