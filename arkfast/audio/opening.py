"""Which library reads a file: by its first bytes, by its suffix where it has no header, and by PyAV where libsndfile refuses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

from arkfast.audio.channels import check_channel, check_track
from arkfast.audio.headerless import by_suffix, check_headerless
from arkfast.audio.limits import check_format
from arkfast.audio.pyav import PyavMissing, PyavRecording
from arkfast.audio.sndfile import SndfileRecording, SndfileRefused
from arkfast.audio.sniff import ADTS, MP3, Format, describe, id3_end, sniff
from arkfast.audio.soundness import Soundness
from arkfast.audio.source import Bytes
from arkfast.installation import install_hint
from arkfast.records import InputError

_EXPORT = "export it again, e.g. ffmpeg -i input -ac 1 -ar 16000 output.wav"

Recording = SndfileRecording | PyavRecording


@contextlib.contextmanager
def open_recording(found: Bytes, max_channels: int, channels: Sequence[int], audio_track: int | None, strict: bool) -> Iterator[Recording]:
    """An open recording, with channels, rate and wholeness checked as far as goes without decoding.

    Args:
        found: the file.
        max_channels: the most channels that are mixed down.
        channels: those that are heard; none of them means all.
        audio_track: which track of a container; None is the first.
        strict: whether an Ogg file without the end mark counts as truncated.

    Raises:
        InputError: the file is no audio, is damaged or empty, or has not what is asked for.
    """
    form = _form(found)
    with _opened(Soundness(found, form, strict=strict), form, audio_track or 0) as recording:
        check_track(found.label, audio_track or 0, recording.tracks)
        check_channel(found.label, channels, recording.channels)
        check_format(found.label, len(channels) or recording.channels, recording.rate, max_channels)
        reason = recording.sound.damage
        if reason is None and recording.frames == 0:
            reason = recording.cut or "the recording holds no samples"
        if reason:
            raise InputError(f"{found.label}: {reason}")
        yield recording


def _form(found: Bytes) -> Format:
    """What a file is.

    Raises:
        InputError: nothing that can be read.
    """
    with found.open() as stream:
        form = sniff(stream)
        headerless = by_suffix(found.label if found.path is None else found.path)
        # Silence in µ-law begins like an MPEG frame, whose mark is short; every other beginning says more than a suffix.
        if headerless is not None and (form is None or (form in (MP3, ADTS) and not id3_end(stream))):
            check_headerless(stream, headerless, found.label)
            return headerless
        if form is None:
            raise InputError(
                f"{found.label}: not audio: {describe(stream)}; wav, flac, mp3, ogg and, with PyAV, m4a, webm, wma, aac, amr, flv, ts, avi "
                "and wv can be read, and telephony files without a header by their suffix (gsm, ulaw, alaw, sln, g722): convert other "
                "formats, e.g. ffmpeg -i input -ac 1 -ar 16000 output.wav"
            )
    return form


def _opened(sound: Soundness, form: Format, audio_track: int) -> Recording:
    if form.library == "pyav":
        return PyavRecording(sound, form, audio_track)
    try:
        return SndfileRecording(sound, form)
    except SndfileRefused as refusal:
        reason, advice = sound.damage or sound.cut(math.inf), _EXPORT
        if reason is None and form.demuxer:
            try:
                return PyavRecording(sound, form, audio_track)
            except PyavMissing:
                advice = f"PyAV may read it, {install_hint('containers')}; or {_EXPORT}"
            except InputError:
                pass
        reason = reason or f"damaged at its head, or a kind of {form.name} that {refusal}: {advice}"
        raise InputError(f"{sound.source.label}: {reason}") from refusal
