"""Checksums of a checkpoint's files, made when it is sealed and compared when a run goes on from it.

Sizes and headers do not show a file whose second half is zeros after a power cut, or a bit that a disk has lost. A file's checksum is the
BLAKE2b digest of the digests of its blocks of ``BLOCK`` bytes, so that several threads work on one large file.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 64 << 20
"""Bytes that are digested by themselves."""
_PIECE = 4 << 20
_THREADS = max(1, min(8, (os.cpu_count() or 1) - 1))


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The checksums of files in a folder, by their names.

    Raises:
        OSError: a file cannot be read.
    """
    sizes = {name: (folder / name).stat().st_size for name in names}
    places = [(name, start) for name, size in sizes.items() for start in range(0, max(size, 1), BLOCK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        blocks = pool.map(lambda place: _block(folder / place[0], place[1]), places)
        whole = {name: hashlib.blake2b(digest_size=16) for name in sizes}
        for (name, _), block in zip(places, blocks, strict=True):
            whole[name].update(block)
    return {name: digest.hexdigest() for name, digest in whole.items()}


def _block(path: Path, start: int) -> bytes:
    digest, left = hashlib.blake2b(digest_size=16), BLOCK
    with path.open("rb") as file:
        file.seek(start)
        while left and (piece := file.read(min(_PIECE, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.digest()


class Verification:
    """Looks for damage in a thread, while models load.

    Args:
        look: what is wrong with a checkpoint, or None.
    """

    def __init__(self, look: Callable[[], str | None]) -> None:
        self._found: str | None = None
        self._thread = threading.Thread(target=self._run, args=(look,), name="arkfast-verify", daemon=True)
        self._thread.start()

    def _run(self, look: Callable[[], str | None]) -> None:
        try:
            self._found = look()
        except Exception as error:  # whatever it is, what was not verified is not used
            self._found = f"{type(error).__name__}: {' '.join(str(error).split())}"

    def damage(self) -> str | None:
        """What was found, once the thread has ended."""
        self._thread.join()
        return self._found
