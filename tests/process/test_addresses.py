"""Addresses: what is told to clients, and names that stand for IPv6 alone."""

from __future__ import annotations

import socket
import threading
import time

import numpy as np
import pytest

from streamrnn.errors import StartError
from streamrnn_client import Client
from streamrnn_client._drivers import names
from streamrnn_client._drivers.names import numeric_endpoints
from streamrnn_client.server_info import ServerInfo
from streamrnn_server.config import ServerConfig, parse_endpoint
from streamrnn_server.event_log import EventLog
from streamrnn_server.server import Server
from streamrnn_server.testing import serving
from tests.support.models import random_model

V4, V6 = socket.AF_INET, socket.AF_INET6
WILDCARDS = ["0.0.0.0", "*", "[::]", "0", "[0:0:0:0:0:0:0:0]", "[::ffff:0.0.0.0]"]


@pytest.fixture(scope="module")
def model():
    return random_model(np.random.default_rng(3), [("gru", 12)])


@pytest.fixture
def known(monkeypatch):
    """Names of hosts and their addresses, in the order in which the system has them."""
    hosts: dict[str, list[tuple[int, str]]] = {}

    def getaddrinfo(host, port, *args, **kwargs):
        if host not in hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, socket.SOCK_STREAM, 6, "", (text, 0)) for family, text in hosts[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return hosts


@pytest.mark.parametrize("host", WILDCARDS)
def test_several_shards_at_a_wildcard_need_an_address_for_clients(host):
    bind = parse_endpoint(f"tcp://{host}:7070", "--bind")
    with pytest.raises(StartError, match="--advertise"):
        ServerConfig(bind=bind, num_shards=2, insecure=True)
    ServerConfig(bind=bind, insecure=True)
    here = parse_endpoint("tcp://rnn.example.org:7070", "--advertise")
    ServerConfig(bind=bind, num_shards=2, insecure=True, advertise=here)


@pytest.mark.parametrize("address", [*(f"tcp://{host}:7070" for host in WILDCARDS), "tcp://a:0"])
def test_what_is_advertised_must_be_an_address_to_connect_to(address):
    with pytest.raises(StartError, match="--advertise is tcp"):
        ServerConfig(advertise=parse_endpoint(address, "--advertise"))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "eth0", "0.example.org"])
def test_other_addresses_are_no_wildcards(host):
    assert not parse_endpoint(f"tcp://{host}:1", "--bind").is_wildcard


def hello(*endpoints):
    reply = {"protocol": 1, "server": "1", "instance": "i", "durability": "none"}
    return reply | {"arithmetic": "a", "endpoints": endpoints, "num_shards": len(endpoints)}


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "*"])
def test_a_client_puts_the_host_that_it_knows_in_the_place_of_a_wildcard(host):
    told = hello(f"tcp://{host}:7070", f"tcp://{host}:7071", "tcp://10.0.0.1:7072")
    endpoints = ServerInfo.from_map(told, "tcp://[fd00::1]:9").endpoints
    assert endpoints == ("tcp://[fd00::1]:7070", "tcp://[fd00::1]:7071", "tcp://10.0.0.1:7072")


@pytest.mark.parametrize(
    ("found", "bound"),
    [
        ([(V6, "::1")], "tcp://[::1]:"),
        ([(V4, "127.0.0.1")], "tcp://127.0.0.1:"),
        ([(V6, "::1"), (V4, "127.0.0.1")], "tcp://127.0.0.1:"),
    ],
)
def test_a_server_and_a_client_meet_at_a_name(known, model, found, bound):
    known["v6only.test"] = found
    config = ServerConfig(bind=parse_endpoint("tcp://v6only.test:0", "--bind"), insecure=True)
    server = Server({"m": model}, config, EventLog(level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.endpoints[0].startswith(bound)
        port = server.endpoints[0].rpartition(":")[2]
        with Client(f"tcp://v6only.test:{port}") as client:
            assert client.hello().instance == server.control.instance
    finally:
        server.stop()
        thread.join()
        server.close()


def test_a_client_tries_all_addresses_of_a_name(known, model):
    """A server listens at one of them, which is not the first."""
    known["both.test"] = [(V6, "::1"), (V4, "127.0.0.1")]
    with serving({"m": model}) as server:
        port = server.endpoints[0].rpartition(":")[2]
        with Client(f"tcp://both.test:{port}") as client:
            assert client.hello().server
    known["both.test"] = [(V4, "127.0.0.2"), (V4, "127.0.0.1")]
    with serving({"m": model}) as server:
        port = server.endpoints[0].rpartition(":")[2]
        with Client(f"tcp://both.test:{port}") as client:
            assert client.hello().server


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:7070",
        "tcp://[::1]:7070",
        "tcp://nowhere.test:7070",
        "ipc:///tmp/x",
        "tcp://a",
    ],
)
def test_what_is_no_name_or_unknown_is_left_to_libzmq(known, endpoint):
    assert numeric_endpoints(endpoint) == [endpoint]


def test_the_addresses_of_a_name_are_asked_for_each_time(known):
    known["a.test"] = [(V6, "fd00::1"), (V4, "10.0.0.1"), (V4, "10.0.0.1")]
    assert numeric_endpoints("tcp://a.test:1") == ["tcp://10.0.0.1:1", "tcp://[fd00::1]:1"]
    known["a.test"] = [(V4, "10.0.0.2")]
    assert numeric_endpoints("tcp://a.test:1") == ["tcp://10.0.0.2:1"]


def test_a_name_server_that_does_not_answer_holds_nobody_up(monkeypatch):
    asked, answer = [], threading.Event()

    def getaddrinfo(host, *args, **kwargs):
        asked.append(host)
        answer.wait()
        return [(V4, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(names, "_MAX_WAIT_S", 0.01)
    for _ in range(3):
        assert numeric_endpoints("tcp://slow.test:1") == ["tcp://slow.test:1"]
    answer.set()
    while numeric_endpoints("tcp://slow.test:1") != ["tcp://10.0.0.1:1"]:
        time.sleep(0)
    assert asked == ["slow.test"]
