"""Keys, users, and raw clients with a key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import zmq
from zmq.auth import create_certificates, load_certificate

from tests.support.peer import Peer, random_id

__all__ = ["GuardedPeer", "make_keys", "make_keys_of"]


def make_keys(directory: Path, *names: str) -> None:
    """Make pairs of keys, of which each secret one is its owner's alone."""
    for name in names:
        _, secret = create_certificates(directory, name)
        os.chmod(secret, 0o600)


def make_keys_of(directory: Path, users: Sequence[str], others: Sequence[str] = ()) -> Path:
    """Make keys of a server, its users and others; ``clients`` has the users' public ones."""
    make_keys(directory, "server", *users, *others)
    (directory / "clients").mkdir()
    for name in users:
        public = (directory / f"{name}.key").read_bytes()
        (directory / "clients" / f"{name}.key").write_bytes(public)
    return directory


class GuardedPeer(Peer):
    """A client of a user that sends exactly what it is told to."""

    def __init__(self, server, keys, user, has_id=True):
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        if has_id:
            self.socket.routing_id = random_id()
        public, secret = load_certificate(keys / f"{user}.key_secret")
        self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
        self.socket.curve_serverkey = load_certificate(keys / "server.key")[0]
        self.socket.connect(server.endpoints[0])
        self.msgid = 0
