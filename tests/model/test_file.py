"""The weight file: what goes in comes out, and nothing damaged ever does."""

from __future__ import annotations

import json
import os
import pickle
import random
import stat
import tracemalloc
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from streamrnn import Model
from streamrnn.errors import ModelFileError
from streamrnn.model.parameters import (
    FORMAT_VERSION,
    canonical_spec,
    fingerprint_of,
    tensor_digest,
)
from streamrnn.model.spec import InputSpec
from streamrnn.model.tensor_file import MAX_HEADER_BYTES, read_tensor_file, write_tensor_file
from tests.support.models import EVERY_KIND_OF_INPUT, random_model


def small_model():
    return random_model(
        np.random.default_rng(5),
        [("lstm", 2), ("gru", 2)],
        2,
        1,
        training={"größe": [1, 0.1, None, "x"], "seed": 3},
    )


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    small_model().save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def refusal(tmp_path_factory):
    """Return a function that writes bytes to a file, loads it, and returns the refusal's words."""
    path = tmp_path_factory.mktemp("bad") / "bad.safetensors"

    def refuse(data):
        path.write_bytes(data)
        with pytest.raises(ModelFileError) as caught:
            Model.load(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return refuse


# --- what goes in comes out --------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"layers": [("rnn_tanh", 3)], "head": None},
        {"layers": [("rnn_relu", 3), ("gru", 5), ("lstm", 1)], "head": "softmax", "outputs": 4},
        {"inputs": EVERY_KIND_OF_INPUT, "warmup_steps": 60, "training": {"rmse": 0.39}},
        {"inputs": [InputSpec('"wörd"\n\\', kind="token", num_categories=9, embedding_size=2)]},
    ],
)
def test_a_model_comes_back_as_it_was(rng, tmp_path, options):
    model = random_model(rng, **options)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = Model.load(str(path))
    assert loaded.spec == model.spec
    assert list(loaded.parameters) == list(model.parameters)
    for name, value in model.parameters.items():
        assert loaded.parameters[name].tobytes() == value.tobytes()
        assert loaded.parameters[name].flags.owndata
    assert loaded.fingerprint == model.fingerprint
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def test_the_file_is_safetensors_that_others_can_read(rng, tmp_path):
    model = random_model(rng)
    model.save(tmp_path / "model.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert {n: v.tobytes() for n, v in tensors.items()} == {
        n: v.tobytes() for n, v in model.parameters.items()
    }


# --- what is damaged ---------------------------------------------------------------------------


def test_every_flipped_byte_is_noticed(good_bytes, refusal):
    chance = random.Random(7)
    for position in range(len(good_bytes)):
        data = bytearray(good_bytes)
        data[position] ^= chance.choice([1, 2, 4, 8, 16, 32, 64, 128])
        refusal(data)


def test_every_truncation_is_noticed(good_bytes, refusal):
    for length in range(len(good_bytes)):
        refusal(good_bytes[:length])


@given(data=st.data())
def test_any_edit_is_noticed(good_bytes, refusal, data):
    begin = data.draw(st.integers(0, len(good_bytes)))
    end = data.draw(st.integers(begin, min(len(good_bytes), begin + 12)))
    new = data.draw(st.binary(max_size=12) | st.text(' "[]{},:0123456789\\', max_size=6))
    new = new if isinstance(new, bytes) else new.encode()
    edited = good_bytes[:begin] + new + good_bytes[end:]
    if edited != good_bytes:
        refusal(edited)


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(refusal, data):
    refusal(data)


def test_a_damaged_tensor_is_named_with_its_place(good_bytes, refusal, tmp_path):
    (tmp_path / "m").write_bytes(good_bytes)
    stored = read_tensor_file(tmp_path / "m").tensors["weight_hh_l1"]
    data = bytearray(good_bytes)
    data[stored.offset_bytes + 5] ^= 4
    place = f"bytes {stored.offset_bytes} to {stored.offset_bytes + 48}"
    assert f"tensor 'weight_hh_l1' ({place})" in refusal(data)


def test_truncation_and_appended_bytes_are_told_with_offsets(good_bytes, refusal):
    size = len(good_bytes)
    words = refusal(good_bytes[:-3])
    assert f"is truncated: the tensors end at byte {size}, the file at byte {size - 3}" in words
    header_end = 8 + int.from_bytes(good_bytes[:8], "little")
    assert f"is truncated: the header ends at byte {header_end}" in refusal(good_bytes[:100])
    assert "has bytes after its last tensor" in refusal(good_bytes + b"\0")


def test_a_changed_description_is_noticed(good_bytes, refusal):
    words = refusal(good_bytes.replace(b'\\"seed\\":3', b'\\"seed\\":4'))
    assert "header" in words
    assert "SHA-256" in words


def _with_header(data, change):
    """Change the header's JSON text; offsets count from its end, so the tensors stay valid."""
    num_bytes = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + num_bytes].decode().rstrip())
    header = text.encode() + b" " * (-len(text.encode()) % 8)
    return len(header).to_bytes(8, "little") + header + data[8 + num_bytes :]


def test_a_header_that_says_the_same_in_other_blanks_is_refused(good_bytes, refusal):
    same = _with_header(good_bytes, lambda text: json.dumps(json.loads(text), ensure_ascii=False))
    assert safetensors.numpy.load(same).keys() == safetensors.numpy.load(good_bytes).keys()
    assert "is damaged or was edited" in refusal(same)
    assert _with_header(good_bytes, lambda text: text) == good_bytes


def test_a_description_that_says_the_same_in_other_letters_is_refused(good_bytes, refusal):
    same = good_bytes.replace(b"\\u00f6", b"\\u00F6")
    assert same != good_bytes
    assert "is damaged or was edited" in refusal(same)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h.replace('"F32"', '"F8_E4M3"', 1), "dtype 'F8_E4M3'; known are F64"),
        (lambda h: h.replace('"F32"', "3", 1), "dtype 3"),
        (lambda h: h.replace("[8]", "[-8]", 1), r"impossible shape [-8]"),
        (lambda h: h.replace("[8]", '["8"]', 1), "impossible shape"),
        (lambda h: h.replace("[8]", "8", 1), "impossible shape"),
        (lambda h: h.replace("[8]", f"[{2**63}]", 1), "impossible shape"),
        (lambda h: h.replace("[8]", "[4]", 1), "has 32 bytes; F32 [4] needs 16"),
        (lambda h: h.replace('"data_offsets"', '"offsets"', 1), "does not consist of dtype"),
        (lambda h: h.replace("[0,32]", "[32,0]", 1), "impossible offsets [32, 0]"),
        (lambda h: h.replace("[0,32]", "[0]", 1), "impossible offsets [0]"),
        (lambda h: h.replace("[0,32]", "[1,33]", 1), "begins at data offset 1; expected 0"),
        # The package safetensors accepts these six.
        (lambda h: h[:-1] + ',"head.bias":1}', "a name is there twice"),
        (lambda h: h.replace('{"streamrnn"', '{"streamrnn":"","streamrnn"'), "is there twice"),
        (lambda h: h.replace('"F32"', '"F32","x":1', 1), "does not consist of dtype"),
        (lambda h: h.replace('"F32"', '{"F32":null}', 1), "has dtype {'F32': None}"),
        (lambda h: h.replace("[8]", "[" + "1," * 32 + "8]", 1), "impossible shape"),
        (lambda h: '{"__metadata__":null}', "__metadata__ in the header is not a map"),
        (lambda h: "{" + "[" * 100_000, "is damaged"),
        (lambda h: '{"a":' * 100_000, "is damaged"),
        (lambda h: '{"__metadata__":{"streamrnn":{}}}', "__metadata__ in the header is not a map"),
        (lambda h: '{"__metadata__":3}', "__metadata__ in the header is not a map"),
        (lambda h: h.replace('{"streamrnn"', '{"x":"y","streamrnn"'), "unknown metadata"),
    ],
)
def test_an_impossible_header_is_refused(good_bytes, refusal, change, words):
    data = _with_header(good_bytes, change)
    assert data != good_bytes
    assert words in refusal(data)


def test_a_huge_header_is_refused_before_it_is_read(refusal, tmp_path):
    assert "header of 1099511627776 bytes; at most" in refusal(
        (1 << 40).to_bytes(8, "little") + b"{" + b" " * 100
    )
    # As large as announced, so that only the limit stands between it and the memory.
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{")
        file.truncate(MAX_HEADER_BYTES * 2)
    tracemalloc.start()
    with pytest.raises(ModelFileError, match=f"at most {MAX_HEADER_BYTES} are read"):
        Model.load(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_description_that_could_not_be_read_back_is_not_written(rng, tmp_path):
    model = random_model(rng, training={"log": "x" * MAX_HEADER_BYTES})
    with pytest.raises(ModelFileError, match="keep large things out of training"):
        model.save(tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []


# --- what is consistent but wrong --------------------------------------------------------------


def _crafted(path, spec, tensors, changes=None):
    """Write a file whose digests are right, whatever else is wrong; return the refusal."""
    digests = {name: tensor_digest(value) for name, value in tensors.items()}
    dtypes = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64"}
    spec_text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    description = {
        "format": FORMAT_VERSION,
        "sha256": fingerprint_of(
            spec_text, {n: (dtypes[v.dtype], v.shape, digests[n]) for n, v in tensors.items()}
        ),
        "spec": spec,
        "tensors": digests,
    } | (changes or {})
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    write_tensor_file(path, tensors, {"streamrnn": text})
    with pytest.raises(ModelFileError) as caught:
        Model.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def parts():
    model = small_model()
    tensors = {name: value.copy() for name, value in model.parameters.items()}
    return json.loads(canonical_spec(model.spec)), tensors


def test_an_unknown_cell_is_refused(parts, tmp_path):
    spec, tensors = parts
    spec["layers"][0]["cell"] = "mamba"
    assert "unknown cell 'mamba'; known are" in _crafted(tmp_path / "m", spec, tensors)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_an_unknown_format_version_is_refused(parts, tmp_path, version):
    words = _crafted(tmp_path / "m", parts[0], parts[1], {"format": version})
    assert f"has format version {version!r}; this StreamRNN reads version 1" in words


def test_wrong_shapes_are_refused(parts, tmp_path):
    spec, tensors = parts
    tensors["weight_hh_l0"] = np.zeros((8, 3), np.float32)
    words = _crafted(tmp_path / "m", spec, tensors)
    assert "weight_hh_l0 has shape [8, 3]; the model's description asks for [8, 2]" in words


def test_missing_extra_and_wide_tensors_are_refused(parts, tmp_path):
    spec, tensors = parts
    extra = tensors | {"extra": np.zeros(1, np.float32)}
    assert "unknown parameter 'extra'" in _crafted(tmp_path / "m", spec, extra)
    wide = tensors | {"head.bias": np.zeros(1, np.float64)}
    assert "head.bias is float64" in _crafted(tmp_path / "m", spec, wide)
    bias = tensors.pop("head.bias")
    assert "parameter head.bias [1] is missing" in _crafted(tmp_path / "m", spec, tensors)
    listed = {name: tensor_digest(value) for name, value in tensors.items()}
    words = _crafted(tmp_path / "m", spec, tensors | {"head.bias": bias}, {"tensors": listed})
    assert "tensor 'head.bias' (bytes " in words
    assert "does not belong to the model" in words


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(parts, tmp_path, value):
    spec, tensors = parts
    tensors["weight_ih_l1"][4, 1] = value
    assert f"weight_ih_l1[4, 1] is {value}" in _crafted(tmp_path / "m", spec, tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": None},
        {"inputs": "x0"},
        {"inputs": [{"name": "x0", "colour": 1}]},
        {"inputs": [{"name": "x0", "scale": "wide"}]},
        {"inputs": [{"name": "x0", "scale": 10**400}]},
        {"inputs": [{"name": "x0", "scale": 1e39}]},
        {"inputs": [{"name": "x0", "scale": [1, 2]}]},
        {"inputs": [{"name": ["x0"]}]},
        {"layers": [{"cell": ["gru"], "hidden_size": 2}]},
        {"layers": [{"cell": "gru", "hidden_size": 2.0}]},
        {"layers": [{"cell": "gru", "hidden_size": 10**9}]},
        {"head": {"activation": "cube"}},
        {"head": 3},
        {"warmup_steps": "many"},
        {"sizes": []},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(parts, tmp_path, change):
    spec, tensors = parts
    _crafted(tmp_path / "m", spec | change, tensors)


def test_a_description_in_another_form_is_refused(parts, tmp_path):
    spec, tensors = parts
    spec["warmup_steps"] = 0  # a default, which is left out
    assert "not in the form that this version writes" in _crafted(tmp_path / "m", spec, tensors)


@pytest.mark.parametrize(
    "changes", [{"tensors": []}, {"tensors": None}, {"extra": 1}, {"sha256": None}]
)
def test_a_description_of_another_shape_is_refused(parts, tmp_path, changes):
    _crafted(tmp_path / "m", parts[0], parts[1], changes)


# --- what is no weight file --------------------------------------------------------------------


def test_other_kinds_of_files_are_named(refusal, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("data.pkl", b"x")
    assert "safetensors.torch.save_file" in refusal((tmp_path / "model.pt").read_bytes())
    for protocol in (2, 4, 5):
        words = refusal(pickle.dumps({"weight": [1.0, 2.0]}, protocol=protocol))
        assert "is a Python pickle" in words
        assert "safetensors.torch.save_file" in words
    assert "is empty" in refusal(b"")
    assert "Git LFS" in refusal(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "HDF5" in refusal(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "byte 8 is b'u', where the header's" in refusal(b"time,value\n1,2\n")


def test_a_state_dict_is_sent_to_import(refusal):
    words = refusal(safetensors.numpy.save({"weight_ih_l0": np.zeros((3, 1), np.float32)}))
    assert "run `streamrnn import" in words


def test_no_length_of_the_header_is_taken_for_another_kind_of_file(rng, tmp_path):
    # A header of 128 + 256*k bytes begins like a pickle, others like gzip or zip.
    path = tmp_path / "model.safetensors"
    first_bytes = set()
    for length in range(0, 256, 8):
        model = random_model(rng, training={"log": "x" * length})
        model.save(path)
        assert Model.load(path).fingerprint == model.fingerprint
        first_bytes.add(path.read_bytes()[0])
    assert first_bytes == set(range(0, 256, 8))


def test_what_is_no_file_is_refused(tmp_path):
    for path, words in (
        (tmp_path, "is a directory"),
        (tmp_path / "absent", "there is no such file"),
        ("/dev/null", "is not a regular file"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(ModelFileError, match=words):
            Model.load(path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with pytest.raises(ModelFileError, match="is not a regular file"):
        Model.load(tmp_path / "pipe")


# --- saving ------------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_old_file(rng, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    old = random_model(rng)
    old.save(path)

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ModelFileError, match=r"cannot be written: No space left on device"):
        random_model(rng).save(path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert Model.load(path).fingerprint == old.fingerprint


def test_the_bytes_are_on_disk_before_the_name_is(rng, tmp_path, monkeypatch):
    events = []

    def noting(event, call):
        def noted(*arguments):
            events.append(event(*arguments))
            return call(*arguments)

        return noted

    monkeypatch.setattr(os, "fsync", noting(_kind, os.fsync))
    monkeypatch.setattr(os, "replace", noting(lambda *_: "rename", os.replace))
    random_model(rng).save(tmp_path / "model.safetensors")
    assert events == ["file", "rename", "directory"]


def _kind(descriptor):
    return "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"


def test_saving_follows_a_link_and_the_umask(rng, tmp_path):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "v1.safetensors", tmp_path / "current.safetensors"
    random_model(rng).save(target)
    link.symlink_to(target)
    model = random_model(rng)
    old_mask = os.umask(0o027)
    try:
        model.save(link)
    finally:
        os.umask(old_mask)
    assert link.is_symlink()
    assert Model.load(target).fingerprint == model.fingerprint
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_place_that_cannot_be_written_is_named(rng, tmp_path):
    path = tmp_path / "absent" / "model.safetensors"
    with pytest.raises(ModelFileError, match=f"{path} cannot be written: No such file"):
        random_model(rng).save(path)
    with pytest.raises(ModelFileError, match="cannot be written: Is a directory"):
        random_model(rng).save(tmp_path)
    assert os.listdir(tmp_path) == []
