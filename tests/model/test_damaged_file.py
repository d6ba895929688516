"""Weight files that are damaged, crafted, or consistent but wrong."""

from __future__ import annotations

import json
import random
import tracemalloc

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
from streamrnn.model.tensor_file import MAX_HEADER_BYTES, read_tensor_file, write_tensor_file

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


def test_a_damaged_tensor_is_reported_with_its_position(good_bytes, refusal, tmp_path):
    (tmp_path / "m").write_bytes(good_bytes)
    stored = read_tensor_file(tmp_path / "m").tensors["weight_hh_l1"]
    data = bytearray(good_bytes)
    data[stored.offset_bytes + 5] ^= 4
    place = f"bytes {stored.offset_bytes} to {stored.offset_bytes + 48}"
    assert f"tensor 'weight_hh_l1' ({place})" in refusal(data)


def test_truncation_and_appended_bytes_are_reported_with_offsets(good_bytes, refusal):
    size = len(good_bytes)
    message = refusal(good_bytes[:-3])
    assert f"is truncated: the tensors end at byte {size}, the file at byte {size - 3}" in message
    header_end = 8 + int.from_bytes(good_bytes[:8], "little")
    assert f"is truncated: the header ends at byte {header_end}" in refusal(good_bytes[:100])
    assert "has bytes after its last tensor" in refusal(good_bytes + b"\0")


def test_a_changed_description_is_noticed(good_bytes, refusal):
    message = refusal(good_bytes.replace(b'\\"seed\\":3', b'\\"seed\\":4'))
    assert "header" in message
    assert "SHA-256" in message


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
    ("change", "message"),
    [
        (lambda h: h.replace('"F32"', '"F8_E4M3"', 1), "dtype 'F8_E4M3'; known are F64"),
        (lambda h: h.replace('"F32"', "3", 1), "dtype 3"),
        (lambda h: h.replace("[8]", "[-8]", 1), r"impossible shape [-8]"),
        (lambda h: h.replace("[8]", '["8"]', 1), "impossible shape"),
        (lambda h: h.replace("[8]", "8", 1), "impossible shape"),
        # Its product is 0, and NumPy would multiply 2**80.
        (lambda h: h.replace("[8]", f"[{2**40},{2**40},0]", 1), "impossible shape"),
        (lambda h: h.replace("[8]", "[-0]", 1), "-0 is no size"),
        (lambda h: h.replace("[0,32]", "[-0,32]", 1), "-0 is no size"),
        (lambda h: h.replace('"head.bias"', '"\\ud800"', 1), "surrogates not allowed"),
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
def test_an_impossible_header_is_refused(good_bytes, refusal, change, message):
    data = _with_header(good_bytes, change)
    assert data != good_bytes
    assert message in refusal(data)


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


# --- what is consistent but wrong --------------------------------------------------------------


def _crafted(path, spec, tensors, changes=None):
    """Write a file whose digests are right, whatever else is wrong; return the error's message."""
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
def parts(small_model):
    tensors = {name: value.copy() for name, value in small_model.parameters.items()}
    return json.loads(canonical_spec(small_model.spec)), tensors


def test_an_unknown_cell_is_refused(parts, tmp_path):
    spec, tensors = parts
    spec["layers"][0]["cell"] = "mamba"
    assert "unknown cell 'mamba'; known are" in _crafted(tmp_path / "m", spec, tensors)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_an_unknown_format_version_is_refused(parts, tmp_path, version):
    message = _crafted(tmp_path / "m", parts[0], parts[1], {"format": version})
    assert f"has format version {version!r}; this StreamRNN reads version 1" in message


def test_wrong_shapes_are_refused(parts, tmp_path):
    spec, tensors = parts
    tensors["weight_hh_l0"] = np.zeros((8, 3), np.float32)
    message = _crafted(tmp_path / "m", spec, tensors)
    assert "weight_hh_l0 has shape [8, 3]; the model's description asks for [8, 2]" in message


def test_missing_extra_and_wide_tensors_are_refused(parts, tmp_path):
    spec, tensors = parts
    extra = tensors | {"extra": np.zeros(1, np.float32)}
    assert "unknown parameter 'extra'" in _crafted(tmp_path / "m", spec, extra)
    wide = tensors | {"head.bias": np.zeros(1, np.float64)}
    assert "head.bias is float64" in _crafted(tmp_path / "m", spec, wide)
    bias = tensors.pop("head.bias")
    assert "parameter head.bias [1] is missing" in _crafted(tmp_path / "m", spec, tensors)
    listed = {name: tensor_digest(value) for name, value in tensors.items()}
    message = _crafted(tmp_path / "m", spec, tensors | {"head.bias": bias}, {"tensors": listed})
    assert "tensor 'head.bias' (bytes " in message
    assert "does not belong to the model" in message


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
        {"inputs": [{"name": "x0", "difference": 96}, {"name": "x1"}]},
        {"training": {"note": "\ud800"}},
        {"training": {"n": 2**64}},
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
