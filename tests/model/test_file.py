"""The weight file: round trips, and refusal of damage."""

from __future__ import annotations

import os
import pickle
import stat
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from streamrnn import Model
from streamrnn.errors import ModelFileError
from streamrnn.model.spec import InputSpec
from streamrnn.model.tensor_file import MAX_HEADER_BYTES
from tests.support.models import EVERY_KIND_OF_INPUT, random_model

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


PROOF = {"compared_with": "größe.npy", "max_abs_error": {"engine": 1e-7, "x": None}}


@pytest.mark.parametrize("proof", [PROOF, "none: nothing was compared"])
def test_a_proof_is_kept_beside_the_model(rng, tmp_path, proof):
    model = random_model(rng)
    proved = Model(model.spec, model.parameters, proof)
    proved.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    assert loaded.proof == proof
    assert loaded.fingerprint == model.fingerprint
    loaded.save(tmp_path / "again.safetensors")
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "model.safetensors").read_bytes()


def test_a_model_without_a_proof_makes_the_bytes_that_it_made_before(rng, tmp_path):
    random_model(rng).save(tmp_path / "model.safetensors")
    assert b"proof" not in (tmp_path / "model.safetensors").read_bytes()
    assert Model.load(tmp_path / "model.safetensors").proof is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"1e-07", b"2e-07"),
        (b"facts", b"fasts"),
        (b'{\\"facts\\":\\"ok\\"', b'{\\"facts\\":\\"no\\"'),
        (b'{\\"facts\\":\\"ok\\",\\"sha256\\":\\"', b'\\"' + b"x" * 27),
    ],
)
def test_a_proof_that_was_edited_is_refused(rng, tmp_path, refusal, old, new):
    model = random_model(rng)
    proof = "ok" if b"ok" in old else PROOF
    Model(model.spec, model.parameters, proof).save(tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    assert old in data
    assert "damaged" in refusal(data.replace(old, new, 1))


# --- what is no weight file --------------------------------------------------------------------


def test_other_kinds_of_files_are_named(refusal, tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("data.pkl", b"x")
    assert "safetensors.torch.save_file" in refusal((tmp_path / "model.pt").read_bytes())
    for protocol in (2, 4, 5):
        message = refusal(pickle.dumps({"weight": [1.0, 2.0]}, protocol=protocol))
        assert "is a Python pickle" in message
        assert "safetensors.torch.save_file" in message
    assert "is empty" in refusal(b"")
    assert "Git LFS" in refusal(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "HDF5" in refusal(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "byte 8 is b'u', where the header's" in refusal(b"time,value\n1,2\n")


def test_a_state_dict_is_sent_to_import(refusal):
    message = refusal(safetensors.numpy.save({"weight_ih_l0": np.zeros((3, 1), np.float32)}))
    assert "run `streamrnn import" in message


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


def test_a_path_that_is_no_regular_file_is_refused(tmp_path):
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "absent", "there is no such file"),
        ("/dev/null", "is not a regular file"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(ModelFileError, match=message):
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


def test_an_unwritable_output_path_is_named(rng, tmp_path):
    path = tmp_path / "absent" / "model.safetensors"
    with pytest.raises(ModelFileError, match=f"{path} cannot be written: No such file"):
        random_model(rng).save(path)
    with pytest.raises(ModelFileError, match="cannot be written: Is a directory"):
        random_model(rng).save(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_description_that_could_not_be_read_back_is_not_written(rng, tmp_path):
    model = random_model(rng, training={"log": "x" * MAX_HEADER_BYTES})
    with pytest.raises(ModelFileError, match="keep large things out of training"):
        model.save(tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []
