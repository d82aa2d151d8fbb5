"""The quickstart's data: spoken digit strings as 16 kHz WAV files with JSONL manifests.

A corpus is built once, as a whole or not at all, and found again by the next call.

Three things keep the evaluation honest. No text stands in two splits. The test set's voices are variants that no other split uses. Its
noises (babble, hum) have spectra that no other split has.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arkfast.files import NewFolder, json_text
from arkfast.quickstart.clips import draw_texts, write_shard
from arkfast.quickstart.recipe import FORMAT, SPLITS, CorpusRecipe
from arkfast.quickstart.speech import Synthesizer
from arkfast.records import InputError, JsonObject

__all__ = ["SPLITS", "Corpus", "CorpusRecipe", "build_corpus"]

_SHARD = 100  # clips spoken by one freshly loaded library: fixed, so that files do not depend on the number of workers


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A finished corpus on disk."""

    root: Path
    """Its folder: manifests, ``corpus.json`` and ``audio/<split>/*.wav``."""
    recipe: CorpusRecipe
    """What it was made from."""
    clips: Mapping[str, int]
    """Rows of each manifest."""
    seconds: Mapping[str, float]
    """Audio seconds of each manifest."""
    reused: bool
    """True when it was found finished, False when this call built it."""

    @property
    def train(self) -> Path:
        """The labelled set of the teacher."""
        return self.root / "train.jsonl"

    @property
    def labels(self) -> Path:
        """The student's few labels: the first rows of ``train``."""
        return self.root / "labels.jsonl"

    @property
    def pool(self) -> Path:
        """Speech for distillation. Its ``text`` is true, for whoever wants to measure; neither OPD nor pseudo-labelling uses it."""
        return self.root / "pool.jsonl"

    @property
    def dev(self) -> Path:
        """New texts in known voices and noises."""
        return self.root / "dev.jsonl"

    @property
    def test(self) -> Path:
        """New texts in new voices and new noises."""
        return self.root / "test.jsonl"


def build_corpus(root: Path, recipe: CorpusRecipe, *, log: Callable[[str], object] = print, workers: int = 1) -> Corpus:
    """Build the corpus in ``root``, or find it there.

    A corpus is built beside ``root`` and renamed when it is complete, so ``root`` never holds half of one. Files do not depend on
    ``workers``.

    Args:
        root: folder of the corpus; absent, empty, or holding a corpus of the same recipe.
        recipe: what to build.
        log: takes one line at a time.
        workers: processes that speak. More than one starts Python anew, so the calling script needs its ``__name__`` guard.

    Raises:
        InputError: ``root`` holds something else or a damaged corpus; a voice that does not exist; texts too short to keep splits apart.
    """
    root = Path(root).absolute()
    found = _find(root, recipe)
    if found:
        log(f"corpus: {sum(found.clips[split] for split in SPLITS)} clips found in {root}")
        return found
    synthesizer = Synthesizer()
    for split in SPLITS:
        accents, variants = recipe.voices(split)
        for voice in (f"{accent}+{variant}" for accent in accents for variant in variants):
            synthesizer.check_voice(voice)
    try:
        with NewFolder(root, shared=True) as folder:
            _write(folder, recipe, log, workers)
    except InputError:
        # Two builds of one corpus may run at the same time; the second to finish uses what the first one built.
        if not (found := _find(root, recipe)):
            raise
        return found
    built = _find(root, recipe)
    assert built, f"{root} was just built"
    return dataclasses.replace(built, reused=False)


def _find(root: Path, recipe: CorpusRecipe) -> Corpus | None:
    """The finished corpus in ``root``, None where there is room for one; InputError where there is neither."""
    card_path = root / "corpus.json"
    if not card_path.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise InputError(f"{root}: holds other files and no corpus.json; give an absent or empty folder")
        return None
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
        digest, manifests = card["digest"], card["manifests"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{card_path}: not a corpus description ({error!r}); remove {root} to build it again") from error
    if digest != recipe.digest:
        given = json.loads(json.dumps(dataclasses.asdict(recipe)))
        old = card.get("recipe", {})
        changed = [f"{name} {old.get(name)!r} there, {given[name]!r} here" for name in given if old.get(name) != given[name]]
        reason = "; ".join(changed) or "made by another version"
        raise InputError(f"{root}: holds a corpus of another recipe ({reason}); give another folder or remove this one")
    for name, entry in manifests.items():
        path = root / f"{name}.jsonl"
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
            raise InputError(f"{path}: missing or changed since the corpus was built; remove {root} to build it again")
    for split in SPLITS:
        count = sum(1 for _ in (root / "audio" / split).glob("*.wav"))
        if count != manifests[split]["clips"]:
            raise InputError(
                f"{root / 'audio' / split}: holds {count} recordings of {manifests[split]['clips']}; remove {root} to build it again"
            )
    return Corpus(
        root=root,
        recipe=recipe,
        clips={name: entry["clips"] for name, entry in manifests.items()},
        seconds={name: entry["seconds"] for name, entry in manifests.items()},
        reused=True,
    )


def _write(folder: Path, recipe: CorpusRecipe, log: Callable[[str], object], workers: int) -> None:
    """Fill ``folder`` with the whole corpus."""
    started = time.perf_counter()
    texts = {split: draw_texts(recipe, split) for split in SPLITS}
    owners = {text: split for split in SPLITS for text in texts[split]}
    assert all(owners[text] == split for split in SPLITS for text in texts[split]), "a text stands in two splits"
    for split in SPLITS:
        (folder / "audio" / split).mkdir(parents=True)
    shards = [
        (folder, recipe, split, start, texts[split][start : start + _SHARD])
        for split in SPLITS
        for start in range(0, len(texts[split]), _SHARD)
    ]
    rows: dict[str, list[JsonObject]] = {split: [] for split in SPLITS}
    for (_, _, split, start, _), made in zip(shards, _in_processes(shards, workers), strict=True):
        rows[split] += made
        if start + len(made) == len(texts[split]):
            seconds = sum(row["duration"] for row in rows[split])
            log(f"corpus: {split} {len(rows[split])} clips, {seconds:.0f} s of speech ({time.perf_counter() - started:.1f} s)")
    manifests = {}
    for name, part in (*rows.items(), ("labels", rows["train"][: recipe.labels])):
        content = "".join(json_text(row) + "\n" for row in part).encode()
        (folder / f"{name}.jsonl").write_bytes(content)
        manifests[name] = {
            "clips": len(part),
            "seconds": round(sum(row["duration"] for row in part), 3),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    card = {"digest": recipe.digest, "format": FORMAT, "recipe": dataclasses.asdict(recipe), "manifests": manifests}
    (folder / "corpus.json").write_text(json_text(card, indent=2) + "\n", encoding="utf-8")


def _in_processes(shards: list[tuple[Any, ...]], workers: int) -> Iterator[list[JsonObject]]:
    """The shards' rows in order, made here or in ``workers`` processes."""
    if workers <= 1:
        yield from (write_shard(*shard) for shard in shards)
        return
    # spawn, not fork: the caller may hold threads (torch), and a fork would copy their locks.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write_shard, *zip(*shards, strict=True))
