"""What a resume needs beside the model: tensors of every rank on disk, whole or not at all, readable at any world size.

Tensors are safetensors files. One process writes one file; several write through ``torch.distributed.checkpoint``, each rank its own
shards, and its reader puts any of them together for any number of ranks. No pickle is read or written.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from arkfast.files import json_text
from arkfast.records import InputError
from arkfast.train.checkpoints.sums import checksums

ALONE = "optimizer.safetensors"
"""Tensors written by one process."""
SHARDS = "optimizer"
"""Folder of the shards written by several."""
FILES = "files.json"
"""Names, sizes and checksums of the other files; the last to be written."""
STATE = "trainer_state.json"
"""Where the run stands. It is not among them: it is replaced, whole, when an evaluation ends that came after the save."""
VERL_SHARDS = "*_world_size_*_rank_*.pt"


def write_alone(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the tensors of a run of one process."""
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / ALONE)


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup, *, background: bool) -> Future[object] | None:
    """Write this rank's part of the tensors; every rank calls it, and all have written when it returns on any.

    Args:
        folder: the same on every rank.
        tensors: DTensors and, the same on every rank, plain ones.
        group: a gloo group that nothing else uses.
        background: copy the tensors to main memory and return at once, with what becomes of the write.
    """
    writer = HuggingFaceStorageWriter(path=str(folder / SHARDS), save_distributed=True)
    if background:
        written = dcp.async_save(dict(tensors), storage_writer=writer, process_group=group)
        assert isinstance(written, Future)
        return written
    dcp.save(dict(tensors), storage_writer=writer, process_group=group)
    return None


def read_state(folder: Path, blank: Mapping[str, torch.Tensor], group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    """Fill those of the ``blank`` tensors that a checkpoint holds, and return them.

    Args:
        folder: a checkpoint that ``damage`` has found whole.
        blank: by name; DTensors get this rank's part, however many ranks wrote.
        group: as for ``write_shards``; None for one process.
    """
    reader = HuggingFaceStorageReader(str(folder / SHARDS if (folder / SHARDS).is_dir() else folder))
    saved = reader.read_metadata().state_dict_metadata
    sizes = {key: tuple(entry.size) for key, entry in saved.items() if isinstance(entry, TensorStorageMetadata)}
    wanted = {key: value for key, value in blank.items() if sizes.get(key) == tuple(value.shape)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        dcp.load(wanted, storage_reader=reader, process_group=group, no_dist=group is None)
    return wanted


def shard_sums(folder: Path, group: dist.ProcessGroup) -> dict[str, str]:
    """The checksums of all shards, each made by the rank that wrote it; every rank calls it when ``write_shards`` is done."""
    rank = dist.get_rank(group)
    own = checksums(folder, [f"{SHARDS}/{path.name}" for path in (folder / SHARDS).glob(f"shard-{rank + 1:05d}-*")])
    of_ranks: list[dict[str, str]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(of_ranks, own, group=group)
    return {name: value for of_rank in of_ranks for name, value in of_rank.items()}


def seal(folder: Path, *, world: int, known: Mapping[str, str] | None = None) -> None:
    """Write down the files of a complete checkpoint with their sizes and checksums; what has no seal, or does not fit it, is not one.

    Args:
        folder: the checkpoint.
        world: how many processes wrote it.
        known: checksums that were made before.
    """
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / STATE]
    made = dict(known or {})
    made |= checksums(folder, [name for name in names if name not in made])
    sizes = {name: (folder / name).stat().st_size for name in names}
    content = {"processes": world, "bytes": sizes, "checksums": {name: made[name] for name in names}}
    (folder / FILES).write_text(json_text(content, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path, *, full: bool = False) -> str | None:
    """What is wrong with a checkpoint folder, or None.

    Args:
        folder: the checkpoint.
        full: read every file and compare its checksum; otherwise names, sizes and headers alone are looked at. A checkpoint of an earlier
            version has no checksums.
    """
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if absent := {"step", "cursor", "best_wer", "best_step", "skipped"} - state.keys():
            return f"{STATE} does not say {', '.join(sorted(absent))}"
        sealed = json.loads((folder / FILES).read_text(encoding="utf-8")) if (folder / FILES).exists() else {"bytes": {ALONE: None}}
        for name, size in sealed["bytes"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if size is not None and path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, {size} were written"
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
        written = dict(sealed.get("checksums", {})) if full else {}
        found = checksums(folder, written)
        if changed := [name for name in written if found[name] != written[name]]:
            return f"{', '.join(changed)} {'holds' if len(changed) == 1 else 'hold'} other bytes than were written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def refuse_foreign(folder: Path, flag: str) -> None:
    """Say what to do with a checkpoint of open-audio-opd's trainer; ``flag`` begins the message.

    Raises:
        InputError: the folder is one.
    """
    found = next(folder.rglob(VERL_SHARDS), None) if folder.is_dir() else None
    if found is not None:
        raise InputError(
            f"{flag}: holds {found.relative_to(folder)}, a shard of open-audio-opd's trainer (verl), which are "
            "pickles tied to one number of processes and are not read here; merge them into safetensors with verl's model_merger and give "
            "that folder as --student_model to go on from its weights"
        )
