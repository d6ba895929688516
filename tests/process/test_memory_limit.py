"""Memory limits of cgroups, in trees of files as the kernel shows them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamrnn_server.config import ServerConfig
from streamrnn_server.memory_limit import cgroup_limits

NO_LIMIT_V1 = 9223372036854771712
V2 = "0::{}\n"
V1 = "12:pids:/x\n4:cpu,memory:{}\n0::/somewhere/else\n"
MOUNT_V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_V1 = (
    "30 23 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "33 30 0:30 / /sys/fs/cgroup/pids rw shared:1 - cgroup cgroup rw,pids\n"
    "35 30 0:32 {root} /sys/fs/cgroup/memory rw shared:2 master:1 - cgroup cgroup rw,memory\n"
)


def write(root, files):
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


def version_2(root, cgroup, limits, mount_root="/"):
    files = {
        "/proc/self/cgroup": V2.format(cgroup),
        "/proc/self/mountinfo": MOUNT_V2.format(root=mount_root),
    }
    write(root, files | {f"/sys/fs/cgroup{path}": text for path, text in limits.items()})
    return sorted(cgroup_limits(root))


def version_1(root, cgroup, limits, mount_root="/"):
    files = {
        "/proc/self/cgroup": V1.format(cgroup),
        "/proc/self/mountinfo": MOUNT_V1.format(root=mount_root),
    }
    places = {f"/sys/fs/cgroup/memory{path}/memory.limit_in_bytes": n for path, n in limits.items()}
    write(root, files | places)
    return sorted(cgroup_limits(root))


def test_the_limit_of_a_service_is_found_in_its_own_cgroup(tmp_path):
    own = "/system.slice/streamrnn.service"
    limits = {f"{own}/memory.max": 471859200, f"{own}/memory.high": "max"}
    assert version_2(tmp_path, own, limits) == [471859200]


def test_all_limits_up_to_the_root_hold(tmp_path):
    limits = {
        "/a/b/c/memory.max": 3000,
        "/a/b/memory.max": "max",
        "/a/b/memory.high": 2500,
        "/a/memory.max": 2000,
        "/memory.max": 9000,
        "/other/memory.max": 1,
    }
    assert version_2(tmp_path, "/a/b/c", limits) == [2000, 2500, 3000, 9000]


def test_version_1_is_read_too(tmp_path):
    limits = {"": NO_LIMIT_V1, "/a": 5000, "/a/b": 7000}
    assert version_1(tmp_path, "/a/b", limits) == [5000, 7000, NO_LIMIT_V1]


@pytest.mark.parametrize("version", [version_1, version_2])
def test_a_container_sees_its_cgroup_as_the_root_of_the_mount(tmp_path, version):
    """Without a namespace of cgroups: the path is the host's, the mount is the container's."""
    file = "/memory.max" if version is version_2 else ""
    limits = {file: 5000, f"/below{file}": 4000}
    assert version(tmp_path, "/docker/abc/below", limits, "/docker/abc") == [4000, 5000]


@pytest.mark.parametrize("path", ["/elsewhere", "/../../x", "/gone (deleted)"])
def test_a_path_that_is_not_there_leaves_what_is_mounted(tmp_path, path):
    assert version_2(tmp_path, path, {"/memory.max": 5000}) == [5000]


def test_a_path_that_leads_out_of_the_mount_is_not_followed(tmp_path):
    limits = {"/memory.max": 5000, "/../memory.max": 7, "/../../memory.max": 8}
    assert version_2(tmp_path, "/../../x", limits) == [5000]


@pytest.mark.parametrize("limit", ["0", "-1", "", "max", "5 000"])
def test_what_is_no_limit_is_none(tmp_path, limit):
    assert version_2(tmp_path, "/a", {"/a/memory.max": limit, "/memory.max": 5000}) == [5000]


def test_a_mount_point_may_hold_a_space(tmp_path):
    files = {
        "/proc/self/cgroup": V2.format("/a"),
        "/proc/self/mountinfo": "31 23 0:28 / /sys/my\\040groups rw - cgroup2 cgroup2 rw\n",
        "/sys/my groups/a/memory.max": 5000,
    }
    write(tmp_path, files)
    assert cgroup_limits(tmp_path) == [5000]


def test_without_cgroups_there_is_no_limit(tmp_path):
    assert cgroup_limits(tmp_path) == []


@given(st.text(), st.text())
def test_whatever_the_kernel_says_is_no_reason_to_fail(tmp_path_factory, cgroup, mounts):
    root = tmp_path_factory.mktemp("root")
    (root / "proc" / "self").mkdir(parents=True)
    for name, text in (("cgroup", cgroup), ("mountinfo", mounts)):
        (root / "proc" / "self" / name).write_bytes(text.encode(errors="surrogatepass"))
    assert cgroup_limits(root) == []


def test_the_budget_is_half_of_the_smallest_limit(monkeypatch):
    monkeypatch.setattr("streamrnn_server.config.cgroup_limits", lambda: [4000, 3000, 2**62])
    assert ServerConfig().memory_budget_bytes == 1500
    monkeypatch.setattr("streamrnn_server.config.cgroup_limits", list)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert ServerConfig().memory_budget_bytes == machine // 2
