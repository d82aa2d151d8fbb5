"""The service under load: 1 to 64 clients at once, what they wait for, how much audio a second it transcribes, what it refuses, its memory.

    python benchmarks/bench_serve.py --model AutoArk-AI/ARK-ASR-0.6B --hold 3600 --against vLLM=http://127.0.0.1:8000 --out DIR

Each client sends its next recording when the last one was answered, and waits as long as a refusal (429 or 503) says. Every transcript is
compared with what the same server gave for the same recording alone, since the speed of wrong transcripts is worth nothing. With ``--hold``
as many clients as the last row has go on for so many seconds while the memory of arkfast's processes is watched. ``--against`` names other
servers with OpenAI's routes, which get the same requests without the hold; those that nobody names stand in the table as not run. Without
``--model`` a tiny random one is served, which says nothing about speed. arkfast's cache of recordings is off; others may have one. Writes
OUT/serve.json and, with matplotlib, OUT/serve.png, and prints a table. The exit code is 1 where a request failed or a transcript differed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import results
from harness.flood import REFUSALS, Answer, Clip, Flood, Server, alone, flood, model_of, resident
from harness.recordings import signals

from arkfast import audio
from arkfast.files import make_folder, new_file
from arkfast.testing import tiny_checkpoint, write_wav

OURS = "arkfast"
OTHERS = ("sglang-omni", "vLLM", "faster-whisper's server")
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
SECONDS = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 28.0)
"""Of the recordings that are made where none are given: their mean is 10 s."""
STOP_SECONDS = 60.0
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What each server is asked."""

    clips: list[Clip]
    concurrency: list[int]
    requests: int
    """For each number of clients; at least two for each client."""
    hold: float
    """Seconds at the last number of clients; 0 leaves it out."""


def recordings(folder: Path | None) -> list[Clip]:
    """The recordings of a folder, or synthetic ones.

    Raises:
        ValueError: there are none.
    """
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".wav", ".flac", ".mp3", ".ogg"))
        if not paths:
            raise ValueError(f"--audio {folder}: holds no wav, flac, mp3 or ogg file")
        return [Clip(path.name, path.read_bytes(), audio.duration(path)) for path in paths]
    with tempfile.TemporaryDirectory(prefix="arkfast-load-") as name:
        paths = [write_wav(Path(name) / f"{number}.wav", samples) for number, samples in enumerate(signals(SECONDS))]
        return [Clip(path.name, path.read_bytes(), seconds) for path, seconds in zip(paths, SECONDS, strict=True)]


@contextmanager
def served(model: str | None, flags: Sequence[str]) -> Iterator[Server]:
    """``arkfast serve`` on a free port for as long as the block lasts.

    Raises:
        ValueError: it does not become ready; the message holds the end of what it said.
    """
    with tempfile.TemporaryDirectory(prefix="arkfast-served-") as name, tempfile.TemporaryFile("w+") as log:
        # One address stands for all clients here. The same recordings are sent again and again, and each must cost what a new one costs.
        own = ["--port", "0", "--max_requests_per_key", "64", "--encoder_cache_mb", "0"]
        words = [model or str(tiny_checkpoint(Path(name) / "tiny")), *own, *flags]
        command = [sys.executable, "-m", "arkfast", "serve", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if " is ready at " not in line:
                process.wait(STOP_SECONDS)
                log.seek(0)
                raise ValueError(f"arkfast serve {shlex.join(words)} does not start: {log.read()[-2000:]}")
            address = line.split(" is ready at ")[1].strip()
            yield Server(name=OURS, address=address, model="ark-asr", pid=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def row(server: Server, concurrency: int, clips: Sequence[Clip], expected: Sequence[Answer], found: Flood, *, held: bool = False) -> Row:
    """One line of the table: seconds, seconds of audio a second, shares of 1, bytes."""
    answered = [answer for answer in found.answers if answer.status == 200]
    refused = [answer for answer in found.answers if answer.status in REFUSALS]
    taken = [answer.seconds for answer in answered]
    memory = [size for _, size in found.memory]
    return {
        "server": server.name,
        "concurrency": concurrency,
        "held": held,
        "requests": len(found.answers),
        "answered": len(answered),
        "refused": len(refused) / max(1, len(found.answers)),
        "failed": len(found.answers) - len(answered) - len(refused),
        "differ": sum(answer.text != expected[answer.clip].text for answer in answered),
        "seconds": found.seconds,
        "latency": {f"p{q}": float(np.percentile(taken, q)) for q in (50, 95, 99)} if taken else None,
        "audio_rate": sum(clips[answer.clip].seconds for answer in answered) / found.seconds,
        "memory": {"first": memory[0], "last": memory[-1], "most": max(memory)} if memory else None,
    }


def measured(server: Server, load: Load) -> tuple[list[Row], list[tuple[float, int]]]:
    """A row for each number of clients, one for ``hold``, and the memory during that.

    Raises:
        ValueError: the server cannot transcribe a recording alone.
    """
    expected = alone(server, load.clips)
    for clip, answer in zip(load.clips, expected, strict=True):
        if answer.status != 200:
            raise ValueError(f"{server.name}: {clip.name} alone is answered with {answer.status} ({answer.code})")
    rows = []
    for concurrency in load.concurrency:
        found = flood(server, load.clips, concurrency=concurrency, requests=max(load.requests, 2 * concurrency))
        if server.pid is not None:
            found.memory.append((found.seconds, resident(server.pid)))
        rows.append(row(server, concurrency, load.clips, expected, found))
    if not load.hold:
        return rows, []
    found = flood(server, load.clips, concurrency=load.concurrency[-1], hold=load.hold)
    rows.append(row(server, load.concurrency[-1], load.clips, expected, found, held=True))
    return rows, found.memory


def table(rows: Sequence[Row], not_run: Sequence[str]) -> str:
    """The rows in Markdown, with a line in words for each server that was not asked."""
    heads = (
        "server",
        "clients",
        "requests",
        "answered",
        "refused",
        "failed",
        "differ",
        "p50, s",
        "p95, s",
        "p99, s",
        "audio s/s",
        "memory, MB",
    )
    lines = [heads, ("---",) * len(heads)]
    for each in rows:
        latency, memory = each["latency"], each["memory"]
        lines.append(
            (
                each["server"],
                f"{each['concurrency']}" + (f" for {each['seconds']:.0f} s" if each["held"] else ""),
                str(each["requests"]),
                str(each["answered"]),
                f"{100 * each['refused']:.1f} %",
                str(each["failed"]),
                str(each["differ"]),
                *(f"{latency[q]:.2f}" if latency else "–" for q in ("p50", "p95", "p99")),
                f"{each['audio_rate']:.1f}",
                f"{memory['first'] / 1e6:.0f} to {memory['last'] / 1e6:.0f}" if memory else "–",
            )
        )
    lines += [(name, f'not run: give --against "{name}=URL" where it runs', *("",) * (len(heads) - 2)) for name in not_run]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows: Sequence[Row], held: Sequence[tuple[float, int]], about: results.Result, path: Path) -> None:
    """Latency and throughput by the number of clients, and the memory over the held time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4))
    for name in dict.fromkeys(each["server"] for each in rows):
        those = [each for each in rows if each["server"] == name and not each["held"] and each["latency"]]
        clients = [each["concurrency"] for each in those]
        for q, style in (("p50", "-"), ("p95", "--"), ("p99", ":")):
            axes[0].plot(clients, [each["latency"][q] for each in those], style, marker="o", markersize=3, label=f"{name} {q}")
        axes[1].plot(clients, [each["audio_rate"] for each in those], marker="o", markersize=3, label=name)
    axes[2].plot([at / 60 for at, _ in held], [size / 1e6 for _, size in held])
    for axis, title, label in zip(
        axes,
        ("latency, s", "seconds of audio a second", f"{OURS}'s resident memory, MB" + ("" if held else " (not held)")),
        ("clients", "clients", "minutes at saturation"),
        strict=True,
    ):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(label)
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.grid(alpha=0.3)
    numbers = sorted({each["concurrency"] for each in rows})
    for axis in axes[:2]:
        axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, labels=list(map(str, numbers)))
        axis.legend(fontsize=8)
    figure.suptitle(f"serving: {about['hardware'].get('gpu') or about['hardware']['cpu']}, {about['date']}", fontsize=10)
    figure.tight_layout()
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


def others(given: Sequence[str]) -> list[Server]:
    """The servers of ``--against NAME=URL``, asked with the key in OPENAI_API_KEY.

    Raises:
        ValueError: one is not given as NAME=URL, or does not say what it serves.
    """
    key, found = os.environ.get("OPENAI_API_KEY", "none"), []
    for one in given:
        name, _, address = one.partition("=")
        if not name or not address.startswith(("http://", "https://")):
            raise ValueError(f"--against {one}: give NAME=URL, such as vLLM=http://127.0.0.1:8000")
        address = address.rstrip("/").removesuffix("/v1")
        found.append(Server(name=name, address=address, model=model_of(address, key), key=key))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="checkpoint that arkfast serves, a folder or organisation/name; a tiny random one by default")
    parser.add_argument("--serve_flags", default="", help='further flags of arkfast serve, such as "--slots 64 --device cuda:1"')
    parser.add_argument("--audio", type=Path, help="folder of recordings to send; synthetic ones of 1 to 28 s by default")
    parser.add_argument("--concurrency", default=",".join(map(str, CONCURRENCY)), help="numbers of clients, ascending, with commas between")
    parser.add_argument("--requests", type=int, default=200, help="requests for each number of clients, and at least two a client")
    parser.add_argument("--hold", type=float, default=0.0, help="seconds at the last number of clients while arkfast's memory is watched")
    parser.add_argument("--against", action="append", default=[], metavar="NAME=URL", help="another server to ask; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("runs/bench_serve"), help="folder of serve.json and serve.png")
    options = parser.parse_args(arguments)
    try:
        numbers = [int(number) for number in options.concurrency.split(",")]
        if numbers != sorted(set(numbers)) or numbers[0] < 1 or options.requests < 1 or not 0 <= options.hold < float("inf"):
            raise ValueError("--concurrency must be ascending numbers from 1 on, --requests at least 1, --hold at least 0")
        load = Load(clips=recordings(options.audio), concurrency=numbers, requests=options.requests, hold=options.hold)
        against = others(options.against)
        with served(options.model, shlex.split(options.serve_flags)) as ours:
            rows, held = measured(ours, load)
        for server in against:
            rows += measured(server, replace(load, hold=0.0))[0]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    names = {server.name.lower() for server in against}
    not_run = [name for name in OTHERS if name.lower() not in names]
    about = results.machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"), None)
    result = {**about, "model": options.model or "tiny, random weights", "rows": rows, "held": held, "not_run": not_run}
    make_folder(options.out)
    results.write(options.out / "serve.json", result)
    try:
        plot(rows, held, about, options.out / "serve.png")
    except ModuleNotFoundError as error:
        print(f"no plot: {error.name} is not installed", file=sys.stderr)
    seconds, where = sum(clip.seconds for clip in load.clips), about["gpu"] or about["hardware"]["cpu"]
    print(f"{result['model']} on {where}, {seconds:.0f} s of audio in {len(load.clips)} recordings\n")
    print(table(rows, not_run))
    return 1 if any(each["failed"] or each["differ"] for each in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
