"""The parts of the demonstration of a voice activity detector, and all of it if it is at hand."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from streamrnn.errors import StartError
from streamrnn_bench.demo.vad.audio import FRAME, RATE_HZ, Microphones, Room, record
from streamrnn_bench.demo.vad.source import find

WHEELS = Path(__file__).parents[3] / "build" / "silero"


def test_a_microphone_hears_its_clip_from_its_own_moment_on():
    clips = np.arange(8 * 5 * FRAME, dtype=np.float32).reshape(8, -1)
    microphones = Microphones(Room(clips, "nobody"), 3)
    first, second = microphones.frame(0), microphones.frame(1)
    assert first.shape == (3, FRAME)
    steps = np.diff(np.concatenate([first, second], axis=1)[0])
    assert np.allclose(steps, steps[0], rtol=1e-2)  # one frame goes on where the other one ended
    np.testing.assert_array_equal(first, microphones.frame(5))  # a clip begins again


def test_speech_and_pauses_alternate_without_a_speaker(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    room = record(8.0)
    assert room.clips.shape == (8, 8 * RATE_HZ)
    assert room.speaker == "vowels that this program makes"
    loud = np.abs(room.clips).reshape(8, -1, FRAME).max(axis=2) > 0.05
    assert ((loud.mean(axis=1) > 0.1) & (loud.mean(axis=1) < 0.9)).all()


def test_a_wheel_is_unpacked_and_what_is_none_is_refused(tmp_path):
    name = "silero_vad/data/silero_vad_16k_op15.onnx"
    with zipfile.ZipFile(tmp_path / "silero_vad-6-py3-none-any.whl", "w") as wheel:
        wheel.writestr(name, b"graph")
    assert find(tmp_path, tmp_path).read_bytes() == b"graph"
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(StartError, match=r"holds neither .*pip download"):
        find(other, tmp_path)
    with pytest.raises(StartError, match="does not exist"):
        find(tmp_path / "absent.onnx", tmp_path)
    (other / "silero_vad-6-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(StartError, match="is no wheel that holds"):
        find(other, tmp_path)


@pytest.mark.skipif(not WHEELS.is_dir(), reason="`make demo-vad` has not downloaded the wheel")
def test_all_of_it_runs_and_agrees_with_the_original():
    pytest.importorskip("onnxruntime")
    command = [sys.executable, "-m", "streamrnn_server", "demo", "vad", "--silero", str(WHEELS)]
    command += ["--port", "0", "--streams", "8", "--seconds", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "differ from onnxruntime's by at most" in said
    assert "probability" in said
