"""The options of ``streamrnn serve``: of the command line, the environment and a file."""

from __future__ import annotations

import argparse
import subprocess
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamrnn.errors import StartError
from streamrnn_server.config import Endpoint
from streamrnn_server.options import add_options, print_settings, settings_of
from streamrnn_server.startup.models import load_models
from tests.support.program import TIMEOUT_S, streamrnn


def said(*arguments, **environ):
    """Return the settings of a command line and an environment."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    variables = {f"STREAMRNN_SERVE_{name}": value for name, value in environ.items()}
    return settings_of(parser.parse_args(list(map(str, arguments))), variables)


@pytest.fixture
def file(tmp_path):
    """Write a file of options; return its path."""

    def write(text):
        path = tmp_path / "serve.toml"
        path.write_text(text)
        return path

    return write


def test_the_command_line_comes_before_the_environment_and_that_before_the_file(file):
    path = file('models = ["f"]\nshards = 2\nmax-streams = 20\nidle-limit = 200\n')
    found = said("--config", path, "--shards", 4, SHARDS="3", MAX_STREAMS="30")
    config = found.config
    assert (config.num_shards, config.max_streams, config.idle_limit_s) == (4, 30, 200)
    assert found.models == ["f"]
    assert found.sources == {
        "shards": "command line",
        "max-streams": "STREAMRNN_SERVE_MAX_STREAMS",
        "idle-limit": f"idle-limit in {path}",
    }
    assert said("--config", path, MODELS="a:b=c").models == ["a", "b=c"]
    assert said("m", "--config", path, MODELS="a").models == ["m"]
    assert said(CONFIG=str(path)).config.num_shards == 2


def test_models_stand_anywhere_among_the_options():
    for line in (["m", "--shards", 2], ["--shards", 2, "m"], ["--insecure", "m", "--shards", 2]):
        found = said(*line)
        assert (found.models, found.config.num_shards) == (["m"], 2)


def test_values_of_every_kind_are_read_from_environment_and_file(file, tmp_path):
    text = f"""
bind = "tcp://127.0.0.1:7171"
metrics = "9464"
memory-budget = "2G"
checkpoint-interval = 2
state-dir = "{tmp_path}"
curve-secret-key = "s"
curve-clients = "c"
admin = ["alice", "bob"]
insecure = true
log-format = "json"
"""
    by_file = said("--config", file(text))
    by_variables = said(
        BIND="tcp://127.0.0.1:7171",
        METRICS="9464",
        MEMORY_BUDGET="2G",
        CHECKPOINT_INTERVAL="2",
        STATE_DIR=str(tmp_path),
        CURVE_SECRET_KEY="s",
        CURVE_CLIENTS="c",
        ADMIN="alice, bob",
        INSECURE="yes",
        LOG_FORMAT="json",
        ADVERTISE="",
    )
    for found in (by_file, by_variables):
        config = found.config
        assert config.bind == Endpoint("127.0.0.1", 7171)
        assert config.metrics == Endpoint("127.0.0.1", 9464)
        assert config.memory_budget_bytes == 2**31
        assert config.state_dir == tmp_path
        assert config.durability == "checkpoint"
        assert config.admins == ("alice", "bob")
        assert config.insecure is True
        assert found.log_format == "json"
    assert by_file.config == by_variables.config


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("shard = 2", "'shard' in .*serve.toml is no option; did you mean shards?"),
        ("shards = 'many'", "shards in .*serve.toml is 'many'; it must be a number"),
        ("shards = 2.5", "shards in .* is 2.5; it must be a number"),
        ("shards = true", "shards in .* is True; it must be a text or a number"),
        ("shards = [1]", "it must be a text or a number"),
        ("shards = 0", "--shards is 0"),
        ("insecure = 'perhaps'", "it must be true or false"),
        ("admin = [1]", "it must be a list of texts"),
        ("models = 'm'", "models in .* it must be a list of texts"),
        ("device = 'abacus'", "it must be one of cpu, cuda, auto"),
        ("bind = 'nowhere'", "bind in .*serve.toml 'nowhere' is no address"),
        ("memory-budget = -1", "is no number of bytes"),
        ("shards = ", "cannot read the options in"),
        ("[server]\nshards = 1", "'server' in .* is no option"),
        (f"admin = {'[' * 5000}", "cannot read the options in"),
        ('state-dir = ""', "state-dir in .* '' is no path"),
        ('ready-file = "a\\u0000b"', "ready-file in .* is no path"),
        ('bind = "tcp://a\\u0000b:1"', "bind in .* is no address"),
        ('advertise = "tcp://a b:1"', "advertise in .* is no address"),
        ('metrics = "a\\u0000b:1"', "metrics in .* is no address"),
        (f'metrics = "{"0" * 5000}1"', "metrics in .* is no address"),
        (f'bind = "tcp://a:{"1" * 5000}"', "bind in .* is no address"),
        (f'memory-budget = "{"9" * 400}"', "memory-budget in .* is no number of bytes"),
        ('memory-budget = "9999999999T"', "memory-budget in .* is no number of bytes"),
        (f"idle-limit = {'9' * 30}", "--idle-limit is 9+; it must be 0 to 1000000000 s"),
        ("time-to-live = 1000000001\nstate-dir = 'd'", "--time-to-live is 1000000001; it must be"),
    ],
)
def test_what_makes_no_sense_in_a_file_is_named_with_its_place(file, text, told):
    with pytest.raises(StartError, match=told):
        said("m", "--config", file(text))


@pytest.mark.parametrize("flag", ["--state-dir", "--ready-file", "--curve-secret-key"])
def test_an_empty_path_is_not_the_directory_that_the_server_is_in(flag):
    with pytest.raises(StartError, match=f"{flag} '' is no path"):
        said("m", flag, "")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\0", "\udcff", "a\u2028b"])
def test_a_model_s_name_is_one_line_of_text(name):
    with pytest.raises(StartError, match="a model's name is one line of text in UTF-8"):
        load_models([f"{name}=m.safetensors"])


@pytest.mark.parametrize("name", ["@", "@1", "m@"])
def test_a_version_of_nothing_is_no_model_s_name(name):
    with pytest.raises(StartError, match="NAME@VERSION"):
        load_models([f"{name}=m.safetensors"])


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "\udcff"])
def test_a_host_that_can_have_no_address_is_left_to_who_binds_it(host):
    assert Endpoint(host, 1).numeric() == Endpoint(host, 1)


def test_what_makes_no_sense_in_the_environment_is_named():
    with pytest.raises(StartError, match="STREAMRNN_SERVE_SHARDS is 'x'"):
        said("m", SHARDS="x")
    with pytest.raises(StartError, match=r"SERVE_SHARD is no option.*mean STREAMRNN_SERVE_SHARDS"):
        said("m", SHARD="2")


def test_a_file_that_cannot_be_read_is_named(tmp_path, file):
    with pytest.raises(StartError, match="No such file"):
        said("--config", tmp_path / "none")
    path = file("")
    path.write_bytes(b"\xff")
    with pytest.raises(StartError, match="utf-8"):
        said("--config", path)
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(StartError, match="more than 1 MiB"):
        said("--config", path)


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    models=st.lists(texts, max_size=3),
    shards=st.integers(1, 64),
    interval=st.floats(0.001, 3600),
    names=st.lists(texts.filter(lambda text: text.strip() == text), max_size=3),
    host=st.sampled_from(["127.0.0.1", "[::1]", "localhost"]),
    port=st.integers(0, 60_000),
    has_metrics=st.booleans(),
    state=texts,
)
def test_what_is_printed_is_a_file_of_the_same_settings(
    tmp_path, models, shards, interval, names, host, port, has_metrics, state
):
    lines = ["--shards", shards, "--checkpoint-interval", interval, "--state-dir", f"./{state}"]
    lines += ["--bind", f"tcp://{host}:{port}", *["--metrics", f"{host}:{port}"] * has_metrics]
    lines += ["--curve-secret-key", "s", "--curve-clients", "c"]
    for name in names:
        lines.append(f"--admin={name}")
    found = said(*lines, "--", *models)
    path = tmp_path / "printed.toml"
    path.write_text(print_settings(found), encoding="utf-8")
    again = said("--config", path)
    assert again._replace(sources=found.sources) == found


def test_every_option_is_printed_and_says_where_it_is_from(file):
    printed = print_settings(said("m", "--shards", 2, LOG_LEVEL="debug"))
    lines = printed.splitlines()
    assert "shards = 2  # command line" in lines
    assert 'log-level = "debug"  # STREAMRNN_SERVE_LOG_LEVEL' in lines
    assert "max-streams = 1048576  # default" in lines
    assert "# state-dir is not set" in lines
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    flags = {flag.removeprefix("--") for flag in parser._option_string_actions}
    named = {line.removeprefix("# ").split()[0] for line in lines}
    assert named == flags - {"config", "print-config"} | {"models"}
    assert tomllib.loads(printed)["models"] == ["m"]


def test_the_program_prints_them_and_refuses_to_serve_nothing(tmp_path):
    done = subprocess.run(
        streamrnn("serve", "m", "--shards", 2, "--print-config"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout)["shards"] == 2
    done = subprocess.run(streamrnn("serve"), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert "no MODEL is named" in done.stderr


def test_the_defaults_of_the_page_are_those_of_the_program():
    help = argparse.ArgumentParser()
    add_options(help)
    text = " ".join(help.format_help().split())
    assert "how often changed streams are written (1.0)" in text
    assert "%(default)s" not in text
