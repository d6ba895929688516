"""Speech with pauses and noise, and a thousand microphones that hear it each in its own time."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamrnn.errors import StartError

__all__ = ["FRAME", "RATE_HZ", "Microphones", "Room", "record"]

Floats = NDArray[np.float32]

RATE_HZ = 16_000
FRAME = 512  # samples of a step: 32 ms
_NUM_CLIPS = 8
_PAUSE_S = (1.0, 2.5)  # between sentences
_NOISE = 0.003  # of full scale
_SENTENCES = (
    "The weekly measurements at the observatory have been rising for decades.",
    "Please leave a message after the tone.",
    "A stream remembers what it has heard, one frame after the other.",
    "The train to the harbour leaves from platform seven.",
)
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))  # Hz


@dataclass(frozen=True)
class Room:
    """Clips of speech and pauses, [clip, samples], and who spoke them."""

    clips: Floats
    speaker: str


def record(seconds: float) -> Room:
    """Let speech alternate with pauses: by espeak-ng where it is installed, else by vowels."""
    rng = np.random.default_rng(16)
    program = shutil.which("espeak-ng") or shutil.which("espeak")
    num_samples = int(seconds * RATE_HZ)
    clips = np.zeros((_NUM_CLIPS, num_samples), np.float32)
    for clip in clips:
        at = int(rng.uniform(*_PAUSE_S) * RATE_HZ)
        while at < num_samples:
            if program:
                speech = _spoken(program, rng)
            else:
                speech = _vowels(rng)
            part = speech[: num_samples - at]
            clip[at : at + len(part)] = part
            at += len(part) + int(rng.uniform(*_PAUSE_S) * RATE_HZ)
    noise = rng.normal(0, _NOISE, clips.shape).astype(np.float32)
    return Room(clips + noise, "espeak-ng" if program else "vowels that this program makes")


def _spoken(program: str, rng: np.random.Generator) -> Floats:
    """Let espeak-ng say a sentence."""
    words, pitch = str(rng.integers(130, 190)), str(rng.integers(25, 75))
    command = [program, "--stdout", "-s", words, "-p", pitch, str(rng.choice(_SENTENCES))]
    try:
        answer = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        with wave.open(io.BytesIO(answer)) as file:
            rate_hz = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    except (OSError, subprocess.SubprocessError, wave.Error, EOFError) as error:
        raise StartError(f"{program} does not speak: {error}") from error
    length = int(len(samples) * RATE_HZ / rate_hz)
    places = np.arange(length) * (rate_hz / RATE_HZ)
    heard = np.interp(places, np.arange(len(samples)), samples / 32768.0)
    return heard.astype(np.float32)


def _vowels(rng: np.random.Generator) -> Floats:
    """Sing some vowels: pulses of a voice through three resonances each."""
    parts = []
    for _ in range(int(rng.integers(4, 9))):
        length = int(rng.uniform(0.12, 0.3) * RATE_HZ)
        pitch_hz = rng.uniform(100, 180) * np.linspace(1.05, 0.9, length)
        phase = np.cumsum(pitch_hz) / RATE_HZ
        voice = np.diff(np.floor(phase), prepend=0.0)
        for hertz in _VOWELS[int(rng.integers(len(_VOWELS)))]:
            voice = _resonated(voice, hertz)
        envelope = np.sin(np.pi * np.arange(length) / length)
        parts.append(0.3 * envelope * voice / max(np.abs(voice).max(), 1e-9))
    return np.concatenate(parts).astype(np.float32)


def _resonated(x: NDArray[np.float64], hertz: float) -> NDArray[np.float64]:
    """Let a signal through one resonance of 100 Hz width."""
    times = np.arange(int(0.03 * RATE_HZ)) / RATE_HZ
    response = np.exp(-np.pi * 100 * times) * np.sin(2 * np.pi * hertz * times)
    return np.convolve(x, response)[: len(x)]


class Microphones:
    """Streams that hear the clips, each with a delay and a loudness of its own.

    Parameters
    ----------
    room : Room
        What is to be heard.
    num_streams : int
        How many.
    """

    def __init__(self, room: Room, num_streams: int) -> None:
        rng = np.random.default_rng(512)
        self._clips = room.clips
        self._which = rng.integers(0, len(room.clips), num_streams)
        self._delays = rng.integers(0, room.clips.shape[1], num_streams)
        self._delays[0] = 0
        self._gains = rng.uniform(0.3, 1.0, (num_streams, 1)).astype(np.float32)

    def frame(self, t: int) -> Floats:
        """Return what all of them hear at step t, [streams, FRAME]."""
        starts = (self._delays + t * FRAME)[:, None] + np.arange(FRAME)
        heard = self._clips[self._which[:, None], starts % self._clips.shape[1]]
        return np.ascontiguousarray(heard * self._gains)
