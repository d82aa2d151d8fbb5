"""A file for each recording, under a name that is safe on every system and that no other recording has."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from arkfast.data.shards import TarMember
from arkfast.files import write_text
from arkfast.files.remote import identity, is_remote, shown
from arkfast.infer.formats.forms import FORMS, CaptionLimits, Form, written
from arkfast.infer.formats.recordings import Recording

_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names that Windows keeps for devices
_MOST_BYTES = 120  # of a name without its suffix; a file system takes 255, and what is being written has a longer one


def file_names(recordings: Sequence[str]) -> list[str]:
    """A file name without suffix for each recording, whatever their order.

    It is the recording's own name. Where two recordings have one, also one that differs in case alone, or it is too long, a digest of its
    path follows. Of an address, nothing behind its path is in the name.

    Args:
        recordings: paths as rows give them, each once.
    """
    plain = [_safe(recording) for recording in recordings]
    counts = Counter(name.casefold() for name in plain)
    return [
        name if counts[name.casefold()] == 1 and len(name.encode()) <= _MOST_BYTES else f"{_cut(name)}-{_digest(recording)}"
        for name, recording in zip(plain, recordings, strict=True)
    ]


def save(recordings: Iterable[Recording], folder: Path, forms: Sequence[Form], limits: CaptionLimits) -> tuple[int, list[str]]:
    """Write the files of all recordings of which no row failed.

    Each file appears whole or not at all; one of an earlier run is replaced. ``jsonl`` among the formats is passed over.

    Args:
        recordings: with their rows.
        folder: where the files go; made where it is missing.
        forms: the formats.
        limits: of captions.

    Returns:
        How many recordings have their files, and the paths of those that have none.

    Raises:
        InputError: a file cannot be written.
    """
    found = list(recordings)
    done, left_out = 0, []
    for recording, name in zip(found, file_names([recording.audio for recording in found]), strict=True):
        if recording.failed:
            left_out.append(shown(recording.audio))
            continue
        for form in forms:
            if form != "jsonl":
                write_text(folder / f"{name}.{FORMS[form].suffix}", written(recording, form, limits))
        done += 1
    return done, left_out


def _safe(recording: str) -> str:
    member = TarMember.parse(recording)
    plain = shown(recording).removesuffix("?…") if is_remote(recording) else recording
    name = PurePosixPath((member.name if member else plain).replace("\\", "/")).stem
    name = _UNSAFE.sub("_", name).strip(" .") or "recording"
    return f"_{name}" if _DEVICES.fullmatch(name) else name


def _cut(name: str) -> str:
    return name.encode()[:_MOST_BYTES].decode(errors="ignore")


def _digest(recording: str) -> str:
    return hashlib.blake2b(identity(recording).encode(errors="surrogatepass"), digest_size=5).hexdigest()
