"""``arkfast doctor``: what is installed, what runs where, what is missing for each entry point, and what other package stands in the way.

Presence is asked of the installed packages' metadata, never of an import: a folder in the working directory can shadow a name.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from arkfast import __version__
from arkfast.command_line import parse
from arkfast.installation import DISTRIBUTION, install_hint, namesakes

DOORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "import (kernels)": ((), ()),
    "train": (("transformers", "safetensors", "soundfile", "soxr", "jiwer", "tqdm", "pyyaml", "jinja2"), ("asr",)),
    "transcribe, evaluate": (("transformers", "safetensors", "soundfile", "soxr", "jiwer", "tqdm", "jinja2"), ("asr",)),
    "serve": (("fastapi", "uvicorn", "python-multipart", "prometheus-client", "transformers", "soundfile", "soxr"), ("asr", "serve")),
    "quickstart": (("espeakng-loader", "matplotlib", "transformers", "soundfile", "soxr", "jiwer", "jinja2"), ("asr", "quickstart")),
}
"""Door → (the packages that it needs, the extras that bring them)."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """``arkfast doctor`` takes no flags of its own."""


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[str]:
    base = ("torch", "numpy", "triton")
    extras = sorted({name for names, _ in DOORS.values() for name in names} | {"wetext", "whisper-normalizer", "tensorboard", "av"})
    for name in (*base, *extras):
        yield f"  {name:<20} {version(name) or '-'}"


def _machine() -> Iterator[str]:
    yield f"  {'python':<20} {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"  {DISTRIBUTION:<20} {version(DISTRIBUTION) or 'not installed'}; the code runs from {Path(__file__).parent}"
    if version("torch") is None:
        yield "  torch                missing: nothing of arkfast runs without it"
        return
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            yield f"  {'GPU ' + str(i):<20} {p.name}, {p.total_memory / 2**30:.0f} GiB, compute capability {p.major}.{p.minor}"
    else:
        yield f"  {'GPU':<20} none seen (torch is built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU'})"
    yield f"  {'CPU threads':<20} {torch.get_num_threads()}"


def _kernels() -> Iterator[str]:
    from arkfast.kernels import available_backends, fallbacks
    from arkfast.kernels.common.backend import why_not_triton

    reason = why_not_triton()
    yield f"  {'kernel backend':<20} {', '.join(available_backends())} (auto takes the first)"
    if reason:
        yield f"  {'':<20} triton is not used: {reason}"
    for op, reasons in fallbacks().items():
        yield f"  {'':<20} {op} has run in torch on a GPU: {'; '.join(reasons)}"


def _parts() -> Iterator[str]:
    if version("torch") is not None:
        yield from _kernels()
    from arkfast.audio import LogMel

    log_mel = LogMel()
    if log_mel.backend == "c++":
        from arkfast import _C

        yield f"  {'log-mel':<20} C++ extension, instruction set {_C.instruction_set()}"
    else:
        yield f"  {'log-mel':<20} NumPy reference, several times slower (no C++ extension: reinstall where a compiler is)"


def _doors() -> Iterator[str]:
    for door, (needed, extras) in DOORS.items():
        missing = [name for name in needed if version(name) is None]
        yield f"  {door:<20} " + (f"missing {', '.join(missing)}: {install_hint(*extras)}" if missing else "ready")


def _to_mend() -> Iterator[str]:
    for namesake in namesakes():
        yield f"  {namesake.advice()}"


def main(argv: Sequence[str]) -> int:
    """Print the report; returns 0."""
    parse(
        DoctorConfig,
        argv,
        prog="arkfast doctor",
        description="Print what is installed, what runs, and what is missing for each entry point.",
    )
    print(f"arkfast {__version__}")
    to_mend = list(_to_mend())
    parts = {"machine": _machine(), "in use": _parts(), "entry points": _doors(), "packages": _packages()}
    for title, lines in (({"to mend": to_mend} if to_mend else {}) | parts).items():
        print(title)
        for line in lines:
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
