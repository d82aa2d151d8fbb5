"""``arkfast manifest from-librispeech``, ``from-aishell``, ``from-wenetspeech`` and ``from-kaldi``: flags and the progress bar."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arkfast import command_line
from arkfast.command_line import parse
from arkfast.manifest.check import CheckOptions, Finding
from arkfast.manifest.corpora.catalogue import CORPORA, open_corpus
from arkfast.manifest.corpora.convert import convert

_SAID = 20  # rejects printed as they are found; all of them stand in the rejects file

ACTIONS = {f"from-{name}": name for name in CORPORA}
"""Action of ``arkfast manifest`` → the corpus that it reads."""


@dataclass(frozen=True, kw_only=True)
class CorpusConfig(CheckOptions):
    """The flags of ``arkfast manifest from-…``."""

    headings: ClassVar[dict[str, str]] = {
        "input": command_line.FIRST,
        "splits": command_line.DATA,
        "rejects": command_line.OUTPUT,
        "max_audio_seconds": command_line.CHECKS,
    }

    input: Path
    """Folder that the corpus was unpacked into; may stand without its flag, first."""
    output: Path
    """Folder for the manifests, one for each split: test_clean.jsonl and so on, under the names that the preset evaluation reads."""
    splits: tuple[str, ...] = ()
    """Names of splits, separated by commas; all that are there by default, of WenetSpeech DEV, TEST_NET and TEST_MEETING."""
    rejects: Path | None = None
    """JSONL file for utterances that cannot be used, with their reasons; CORPUS.rejects.jsonl in the output folder by default."""
    cache: Path | None = None
    """File that keeps durations for the next time; CORPUS.durations.sqlite3 in the output folder by default."""
    max_audio_seconds: float | None = None
    """A longer clip is bad; none, so that test sets stay whole, allows any."""


def run(action: str, flags: list[str], prog: str) -> int:
    """Write a corpus' manifests; returns 1 when utterances were rejected, else 0.

    Raises:
        InputError: the folder is not laid out as the corpus is, or an output cannot be written.
    """
    from tqdm import tqdm

    corpus_name = ACTIONS[action]
    if flags and not flags[0].startswith("-"):
        flags = ["--input", *flags]
    config = parse(
        CorpusConfig, flags, prog=prog, description=f"Write manifests from a folder of the corpus {corpus_name}.", position="input"
    )
    corpus = open_corpus(corpus_name, config.input, config.splits)
    cache = config.cache or config.output / f"{corpus_name}.durations.sqlite3"
    config.output.mkdir(parents=True, exist_ok=True)
    with tqdm(unit=" rows", desc=corpus_name, disable=None, dynamic_ncols=True) as bar:
        said = 0

        def progress(finding: Finding) -> None:
            nonlocal said
            if finding.error is not None and said < _SAID:
                tqdm.write(str(finding.error), file=sys.stdout)
                said += 1
            bar.update()

        outcome = convert(corpus, config.output, rejects=config.rejects, cache=cache, options=config, progress=progress)
    print(outcome.table())
    for sentence in outcome.short():
        print(f"{prog}: note: {sentence}", file=sys.stderr)
    return 1 if outcome.rejected else 0
