"""Names of hosts: looked up here, for libzmq asks for one kind of address only."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading

__all__ = ["numeric_endpoints"]

_ENDPOINT = re.compile(r"tcp://([^\[\]/]+):(\d+)")
_MAX_WAIT_S = 0.25  # a name server that does not answer must not hold up a call, or an event loop


class _Lookup:
    """A look-up in a thread of its own, which may take longer than anybody wants to wait."""

    def __init__(self, host: str) -> None:
        self.has_ended = threading.Event()
        self.hosts: list[str] = []
        self._name = host
        threading.Thread(target=self._run, name=f"look-up of {host}", daemon=True).start()

    def _run(self) -> None:
        try:
            found = socket.getaddrinfo(self._name, None, type=socket.SOCK_STREAM)
            found.sort(key=lambda each: each[0] != socket.AF_INET)  # IPv4 first
            hosts = [
                f"[{each[4][0]}]" if each[0] == socket.AF_INET6 else str(each[4][0])
                for each in found
            ]
            self.hosts = list(dict.fromkeys(hosts))
        except (OSError, UnicodeError):
            pass  # libzmq will not find it either
        finally:
            self.has_ended.set()


_under_way: dict[tuple[int, str], _Lookup] = {}  # by process too: a fork has not their threads


def numeric_endpoints(endpoint: str) -> list[str]:
    """Return an endpoint with each address of its host in the name's place, IPv4 first.

    It is returned as it came if it holds no name, or the name is not found within a quarter of a
    second: then libzmq goes on looking for an IPv4 address.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or _is_number(match[1]):
        return [endpoint]
    key = (os.getpid(), match[1])
    lookup = _under_way.get(key)
    if lookup is None:
        lookup = _under_way[key] = _Lookup(match[1])
    if not lookup.has_ended.wait(_MAX_WAIT_S):
        return [endpoint]
    _under_way.pop(key, None)  # the next one asks again: addresses change
    return [f"tcp://{host}:{match[2]}" for host in lookup.hosts] or [endpoint]


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
