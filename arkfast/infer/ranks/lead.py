"""What rank 0 and the other ranks of a transcription do: all of them work on chunks, and rank 0 waits for the last of them.

A result is in the journal of the rank that made it. Rank 0 takes all journals into the output's when nothing is left to do, and goes on as
a run would whose rows were all done before, so that one place alone writes outputs.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from arkfast.console import Console
from arkfast.files import json_text
from arkfast.files.json_input import parse_json_object
from arkfast.infer.fetching import Fetcher
from arkfast.infer.journal import Journal
from arkfast.infer.loading import Transcribes
from arkfast.infer.options import TranscribeOptions
from arkfast.infer.ranks.journals import own_journal, take_in
from arkfast.infer.ranks.plan import Lengths
from arkfast.infer.ranks.team import Tally, Team
from arkfast.infer.result import Result
from arkfast.infer.resume import Rows
from arkfast.infer.summary import Summary
from arkfast.infer.transcriber import MOST_WORKERS, Transcriber
from arkfast.records import InputError, JsonObject, Utterance

WAIT_SECONDS = 0.2
"""Between two looks at what others do, for a rank that has nothing to do."""

Items = Callable[[], Iterator["Utterance | Result"]]
"""All rows of the input, in order, from the first one; it can be called again."""
Options = TypeVar("Options", bound=TranscribeOptions)


def for_rank(options: Options, team: Team) -> Options:
    """The flags for one rank: a GPU and a part of the cores of its own.

    Raises:
        InputError: this machine has fewer GPUs than ranks.
    """
    import torch

    there = torch.cuda.device_count() if options.device in (None, "cuda") else 0
    if not there:
        return options
    if team.local >= there:
        raise InputError(f"rank {team.rank} has no GPU of its own, this machine has {there}; start fewer ranks, or give --device cpu")
    workers = options.num_workers
    if workers is None:
        workers = max(1, min(MOST_WORKERS, (os.cpu_count() or 1) // (2 * team.local_world)))
    return replace(options, device=f"cuda:{team.local}", num_workers=workers)


def lead(
    team: Team,
    *,
    transcriber: Transcribes,
    items: Items,
    lengths: Lengths,
    rows: int,
    place: Path,
    decides: JsonObject,
    options: TranscribeOptions,
    held: int,
    console: Console,
) -> Tally:
    """Have all rows done by all ranks, this one among them, so that their results are in the output's journal.

    Args:
        team: the ranks.
        transcriber: the model.
        items: the rows.
        lengths: of the rows.
        rows: how many there are.
        place: the output's journal, with all that earlier runs did; nobody else has it open.
        decides: ``journal.deciding``.
        options: the flags.
        held: how many rows earlier runs did.
        console: where progress is told.

    Returns:
        What was done in this run by all ranks.

    Raises:
        InputError: the store is gone, or a journal cannot be read or written.
    """
    starts = lengths.chunks(team.world)
    run = {"rows": rows, "starts": starts.tolist(), "decides": decides, "device": transcriber.device.type, "dtype": transcriber.dtype}
    team.publish("run", json_text(run))
    console.begin(unit="row", total=rows, done=held)
    told, began, looked = 0, time.perf_counter(), 0.0

    def show() -> None:
        nonlocal told, looked
        if time.monotonic() - looked < 1.0:
            return
        looked = time.monotonic()
        total = _sum(team.tally, team.others())
        speed = f"{total.seconds:.0f} s of audio, RTFx {total.seconds / (time.perf_counter() - began):.1f}, {team.world} ranks"
        console.advance(f"{speed}, {total.failed} failed" if total.failed else speed, by=max(total.rows - told, 0))
        told = max(told, total.rows)

    journal = Journal(place, rows=rows, decides=decides, retry_failed=options.retry_failed, own=own_journal(place, team.rank))
    with closing(journal), Fetcher(options.spool_mb) as fetcher:
        work(team, transcriber=transcriber, items=items, starts=starts, rows=rows, journal=journal, fetcher=fetcher, tell=show)
    while any(team.lives(rank) for rank in range(1, team.world)):
        show()
        time.sleep(WAIT_SECONDS)
    console.end()
    take_in(place)
    return _sum(team.tally, team.others())


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(
        rows=one.rows + other.rows,
        failed=one.failed + other.failed,
        seconds=one.seconds + other.seconds,
        processing_seconds=max(one.processing_seconds, other.processing_seconds),
    )


def follow(team: Team, *, load: Callable[[], Transcriber], items: Items, place: Path, options: TranscribeOptions) -> None:
    """What a rank other than 0 does. It ends early where rank 0 ends without having begun, and leaves it to rank 0 to say why.

    Args:
        team: the ranks.
        load: loads the model.
        items: the rows.
        place: the output's journal, which this rank reads alone.
        options: the flags.

    Raises:
        InputError: the model cannot be loaded or is not on the same kind of device as rank 0's, the store is gone, or a journal cannot be
            read or written.
    """
    transcriber = load()
    said = team.told("run")
    if said is None:
        return
    run = parse_json_object(said)
    for name, mine in (("device", transcriber.device.type), ("dtype", transcriber.dtype)):
        if run[name] != mine:
            raise InputError(
                f"--{name}: rank {team.rank} has {mine} and rank 0 {run[name]}, and transcripts depend on it; give all the same"
            )
    own = own_journal(place, team.rank)
    journal = Journal(place, rows=run["rows"], decides=run["decides"], resume=options.resume, retry_failed=options.retry_failed, own=own)
    with closing(journal), Fetcher(options.spool_mb) as fetcher:
        starts = array("q", run["starts"])
        work(team, transcriber=transcriber, items=items, starts=starts, rows=run["rows"], journal=journal, fetcher=fetcher)


def work(
    team: Team,
    *,
    transcriber: Transcribes,
    items: Items,
    starts: array[int],
    rows: int,
    journal: Journal,
    fetcher: Fetcher,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Work on chunks until every chunk has been ended by some rank.

    Args:
        team: the ranks.
        transcriber: the model.
        items: the rows.
        starts: the first row of each chunk.
        rows: how many rows there are.
        journal: where results go, and those of earlier runs are found.
        fetcher: fetches recordings of other machines.
        tell: called now and then.
    """
    before = transcriber.processing_seconds
    bounds = [*starts, rows]

    def do(chunks: Iterable[int]) -> None:
        # A row's result comes when those before it have come; a chunk's number stands behind its last row.
        under_way = deque[int | None]()

        def given() -> Iterator[tuple[int, Utterance | Result]]:
            numbered = enumerate(items())
            for chunk in chunks:
                for row, item in numbered:
                    if row >= bounds[chunk] and isinstance(item, Utterance):  # rank 0 tells of bad lines when it writes the output
                        under_way.append(None)
                        yield row, item
                    if row + 1 == bounds[chunk + 1]:
                        break
                under_way.append(chunk)

        def end_chunks() -> None:
            while under_way and (chunk := under_way[0]) is not None:
                under_way.popleft()
                team.end(chunk)

        known = Rows(given(), journal, fetcher=fetcher)
        for result in known.results(transcriber):
            turn = known.next()
            end_chunks()
            under_way.popleft()
            if turn.key is not None:
                journal.add(turn.row, turn.key, result)
            if not turn.resumed:
                tally = team.tally
                tally.rows, tally.failed, tally.seconds = tally.rows + 1, tally.failed + result.failed, tally.seconds + result.seconds
                tally.processing_seconds = transcriber.processing_seconds - before
            tell()
            end_chunks()
        end_chunks()

    do(team.next_chunks(len(starts)))
    left = team.not_ended(range(len(starts)))
    while left:
        if lost := team.take_over(left):
            do(lost)
        else:
            tell()
            time.sleep(WAIT_SECONDS)
        left = team.not_ended(left)


def of_all_ranks(summary: Summary, shared: Tally, *, wall_seconds: float) -> Summary:
    """The summary of a run whose rows were all in journals when the output was written: what its ranks did is this run's, not another's."""
    ours = min(shared.rows, summary.resumed)
    return replace(
        summary,
        audio_seconds=summary.audio_seconds + shared.seconds,
        wall_seconds=wall_seconds,
        resumed=summary.resumed - ours,
        resumed_seconds=max(summary.resumed_seconds - shared.seconds, 0.0) if summary.resumed > ours else 0.0,
    )
