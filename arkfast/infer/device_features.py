"""Clips whose features are made on the model's device, as many at a time as have come since the last step.

The rest of a transcription is as with features of the host: this stands between the stream of clips and the session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from arkfast.audio.torch_log_mel import TorchLogMel
from arkfast.infer.session import EngineSession, OnDevice
from arkfast.infer.speech import silence_at
from arkfast.infer.stream import DeviceLost, Outcome
from arkfast.models.family import AudioInput
from arkfast.records import InputError, Utterance

Keep = Callable[[int, Utterance, np.ndarray], None]
"""Is given a clip's ticket, the clip and its features, float32 [n_mels, T]."""


class _Clip(NamedTuple):
    ticket: int
    utterance: Utterance
    samples: np.ndarray


class DeviceFeatures:
    """A ``Decoder`` of samples in place of features.

    Args:
        session: decodes.
        heard: which features the model hears.
        device: where they are made.
        gain: samples are multiplied by it.
        keep: is given features on the host; None: they stay on the device.
    """

    def __init__(self, session: EngineSession, heard: AudioInput, *, device: torch.device, gain: float, keep: Keep | None) -> None:
        self._session, self._device, self._gain, self._keep = session, device, np.float32(gain), keep
        self._log_mel = TorchLogMel(heard.n_mels, device, least_samples=heard.least_samples)
        self._clips: list[_Clip] = []
        self._tickets: dict[int, int] = {}  # the session's → ours
        self._submitted = 0

    def submit(self, utterance: Utterance, features: np.ndarray) -> int:
        """See ``stream.Decoder.submit``; ``features`` are float32 [1, n] samples at 16 kHz.

        Raises:
            InputError: a sample is not finite, or does not stay so when it is multiplied.
        """
        with np.errstate(over="ignore"):
            samples = features[0] if self._gain == 1 else features[0] * self._gain
        if not np.isfinite(samples).all():
            raise InputError("a sample is not a finite number, or is none any more when it is multiplied by the gain")
        self._submitted += 1
        self._clips.append(_Clip(self._submitted, utterance, samples))
        return self._submitted

    def step(self) -> list[Outcome]:
        """See ``stream.Decoder.step``.

        Raises:
            DeviceLost, InputError: as ``EngineSession.step``.
        """
        failed = self._begin() if self._clips else []
        return failed + [outcome._replace(ticket=self._tickets.pop(outcome.ticket)) for outcome in self._session.step()]

    def clear(self) -> None:
        """Forget every clip."""
        self._clips.clear()
        self._tickets.clear()

    def _begin(self) -> list[Outcome]:
        """Make the features of the clips that have come, and queue them; those that cannot be queued have failed."""
        clips, self._clips = self._clips, []
        try:
            made = self._log_mel([clip.samples for clip in clips])
            # One wait for all: what the host has to know of them.
            levels = torch.cat([mel.mean(0) for mel in made]).cpu().numpy()
        except torch.AcceleratorError as error:  # after a CUDA fault every later call fails too
            raise DeviceLost(f"the device {self._device} failed and cannot go on in this process; run again ({error})") from error
        except torch.OutOfMemoryError as error:
            message = f"the device {self._device} has no memory for the features of {len(clips)} clips; give --features host ({error})"
            raise InputError(message) from error
        ends = np.cumsum([mel.shape[1] for mel in made])
        failed: list[Outcome] = []
        for clip, mel, level in zip(clips, made, np.split(levels, ends[:-1]), strict=True):
            if self._keep is not None:
                self._keep(clip.ticket, clip.utterance, mel.cpu().numpy())
            try:
                number = self._session.submit(clip.utterance, OnDevice(mel, silence_at(level)))
            except InputError as error:  # this clip's fault
                failed.append(Outcome(clip.ticket, None, None, " ".join(str(error).split())))
                continue
            self._tickets[number] = clip.ticket
        return failed
