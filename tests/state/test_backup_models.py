"""Models that were loaded into a running server, in backups of its directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from streamrnn.errors import StateError
from streamrnn.state import backup as backups
from streamrnn.state import catalogue as catalogues
from streamrnn.state.backup import ABOUT_FILE, restore_backup
from streamrnn.state.catalogue import (
    CATALOGUE_FILE,
    MODELS_DIRECTORY,
    Content,
    Loaded,
    Share,
    SwapRule,
)
from streamrnn.state.store import StateStore
from streamrnn_server.live.catalogue import Catalogue
from tests.support.models import random_model

MODELS = {
    f"m@{k}": random_model(np.random.default_rng(k), [("lstm", 4)], 2, 1) for k in range(1, 4)
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    for name, model in MODELS.items():
        model.save(directory / name)
    return {name: (directory / name).read_bytes() for name in MODELS}


@pytest.fixture
def directory(tmp_path):
    StateStore(tmp_path / "state", max_bytes=2**24).close()
    return tmp_path / "state"


@pytest.fixture
def catalogue(directory, weights):
    catalogue = Catalogue(directory)
    load(catalogue, weights, "m@1", "m@2")
    aliases, shares = {"m": "m@1"}, {"m": Share("m@2", 500)}
    swaps = {"m@2": SwapRule("m@1", "carry")}
    catalogue.commit(catalogue.content._replace(aliases=aliases, shares=shares, swaps=swaps))
    return catalogue


def load(catalogue, weights, *names):
    loaded = {
        name: Loaded(catalogue.keep_file(weights[name]), MODELS[name].fingerprint) for name in names
    }
    catalogue.commit(catalogue.content._replace(models={**catalogue.content.models, **loaded}))


def unload(catalogue, name):
    models = {key: each for key, each in catalogue.content.models.items() if key != name}
    catalogue.commit(catalogue.content._replace(models=models))
    catalogue.drop_files()


def back_up(directory, target):
    backups._make(directory, target, "1.0", backups._ALL_EPOCHS)
    return target


def restored(backup, directory):
    """Return what a server finds in what is restored."""
    restore_backup(backup, directory)
    catalogue = Catalogue(directory)
    assert catalogue.with_loaded({}).keys() == catalogue.content.models.keys()
    return catalogue.content


def reseal(backup, **files):
    """Let a backup tell of the files that it has, as who made it up would."""
    about = json.loads((backup / ABOUT_FILE).read_text())
    found = [path for path in backup.rglob("*") if path.is_file() and path.name != ABOUT_FILE]
    about["files"] = {str(path.relative_to(backup)): backups._seal(path) for path in found} | files
    del about["sha256"]
    about["sha256"] = backups._digest_of(about)
    (backup / ABOUT_FILE).write_text(json.dumps(about))


def test_models_aliases_shares_and_rules_are_restored(catalogue, directory, tmp_path):
    (directory / MODELS_DIRECTORY / ".unfinished.safetensors-1").write_bytes(b"half")
    assert restored(back_up(directory, tmp_path / "b"), tmp_path / "new") == catalogue.content
    copies = {f"{each.sha256}.safetensors" for each in catalogue.content.models.values()}
    assert {path.name for path in (tmp_path / "b" / MODELS_DIRECTORY).iterdir()} == copies


@pytest.mark.parametrize("change", ["load", "unload", "both"])
def test_the_catalogue_is_of_the_same_moment_as_the_records(
    catalogue, directory, weights, tmp_path, monkeypatch, change
):
    """A model that comes and goes while records are copied may have a stream among them."""
    num_copies, copy = [0], backups._copy_records

    def copy_late(*args):
        copy(*args)
        num_copies[0] += 1
        if num_copies[0] == 1:
            if change != "unload":
                load(catalogue, weights, "m@3")
            if change != "load":
                unload(catalogue, "m@3" if change == "both" else "m@2")

    monkeypatch.setattr(backups, "_copy_records", copy_late)
    assert restored(back_up(directory, tmp_path / "b"), tmp_path / "new") == catalogue.content
    assert num_copies == [2]


def test_a_model_that_goes_before_it_is_copied_is_not_waited_for(
    catalogue, directory, tmp_path, monkeypatch
):
    read = catalogues.read_content

    def read_early(path):
        data = read(path)
        if path == directory and "m@2" in catalogue.content.models:
            unload(catalogue, "m@2")
        return data

    monkeypatch.setattr(backups, "read_content", read_early)
    assert restored(back_up(directory, tmp_path / "b"), tmp_path / "new") == catalogue.content


def test_a_catalogue_that_never_stands_still_is_given_up(
    catalogue, directory, tmp_path, monkeypatch
):
    copy = backups._copy_records

    def copy_and_change(*args):
        copy(*args)
        catalogue.commit(catalogue.content)

    monkeypatch.setattr(backups, "_copy_records", copy_and_change)
    with pytest.raises(StateError, match="changed all the time"):
        back_up(directory, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]


def test_a_copy_that_was_changed_is_not_backed_up(catalogue, directory, weights, tmp_path):
    path = directory / MODELS_DIRECTORY / f"{catalogue.content.models['m@2'].sha256}.safetensors"
    path.write_bytes(weights["m@3"])
    with pytest.raises(StateError, match="changed since model 'm@2'"):
        back_up(directory, tmp_path / "b")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        back_up(directory, tmp_path / "b")


def _link_a_model(backup, path):
    path.rename(backup.with_name("elsewhere"))
    path.symlink_to(backup.with_name("elsewhere"))


def _link_the_folder(backup, path):
    path.parent.rename(backup.with_name("elsewhere"))
    path.parent.symlink_to(backup.with_name("elsewhere"))


def _make_a_pipe(backup, path):
    path.unlink()
    os.mkfifo(path)


def _add_a_model(backup, path):
    shutil.copy(path, path.with_name("0" * 64 + path.suffix))
    reseal(backup)


def _drop_a_model(backup, path):
    path.unlink()
    reseal(backup)


def _make_no_model(backup, path):
    data = b"no model"
    name = path.with_name(hashlib.sha256(data).hexdigest() + path.suffix)
    name.write_bytes(data)
    path.unlink()
    about = (backup / CATALOGUE_FILE).read_text()
    (backup / CATALOGUE_FILE).write_text(about.replace(path.stem, name.stem))
    reseal(backup)


def _make_it_long(backup, path):
    with path.open("ab") as file:
        file.truncate(2**33)  # it has holes


def _name_a_folder_above(backup, path):
    reseal(backup, **{"models/../" + path.name: backups._seal(path)})


def _rename_in_catalogue(backup, path):
    text = (backup / CATALOGUE_FILE).read_text()
    (backup / CATALOGUE_FILE).write_text(text.replace('"m@2"', '"@2"'))
    reseal(backup)


def _change_a_fingerprint(backup, path):
    text = (backup / CATALOGUE_FILE).read_text()
    (backup / CATALOGUE_FILE).write_text(text.replace(MODELS["m@2"].fingerprint, "0" * 64))
    reseal(backup)


def _make_no_catalogue(backup, path):
    (backup / CATALOGUE_FILE).write_text("[" * 10_000)
    reseal(backup)


def _make_a_long_catalogue(backup, path):
    with (backup / CATALOGUE_FILE).open("ab") as file:
        file.write(b" " * 2**24)
    reseal(backup)


def _name_many_models(backup, path):
    loaded = {"sha256": path.stem, "fingerprint": MODELS["m@1"].fingerprint}
    content = json.loads((backup / CATALOGUE_FILE).read_text())
    content["models"] = {str(k): loaded for k in range(20_000)}
    (backup / CATALOGUE_FILE).write_text(json.dumps(content))
    reseal(backup)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_link_a_model, "symbolic links"),
        (_link_the_folder, "is a link"),
        (_make_a_pipe, "no regular file"),
        (_add_a_model, "is no model of the"),
        (_drop_a_model, "cannot load model 'm@1'"),
        (_make_no_model, "cannot load model 'm@1'"),
        (_make_it_long, "has not"),
        (_name_a_folder_above, "no backup has"),
        (_rename_in_catalogue, "NAME@VERSION"),
        (_change_a_fingerprint, "another model than 'm@2'"),
        (_make_no_catalogue, "no catalogue"),
        (_make_a_long_catalogue, "no catalogue"),
        (_name_many_models, "20000 models"),
    ],
)
def test_what_nobody_has_backed_up_is_refused_and_nothing_is_left(
    catalogue, directory, tmp_path, change, match
):
    backup = back_up(directory, tmp_path / "b")
    sha256 = catalogue.content.models["m@1"].sha256
    change(backup, backup / MODELS_DIRECTORY / f"{sha256}.safetensors")
    with pytest.raises(StateError, match=match):
        restore_backup(backup, tmp_path / "new")
    assert not {"new", ".new.part"} & set(os.listdir(tmp_path))


def test_a_directory_without_a_catalogue_has_a_backup_without_one(directory, tmp_path):
    back_up(directory, tmp_path / "b")
    assert not (tmp_path / "b" / CATALOGUE_FILE).exists()
    assert restored(tmp_path / "b", tmp_path / "new") == Content()
