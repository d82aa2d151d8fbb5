"""Checkpoints by name: a local folder, or a repository of the Hugging Face Hub at one commit.

The files that a checkpoint needs come into the usual cache. No weight is read here, and nothing that a repository holds is run.
"""

from __future__ import annotations

import errno
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from arkfast.files.json_input import parse_json_object
from arkfast.records import InputError

T = TypeVar("T")
Contents = Literal["model", "processor", "settings"]

SETTINGS = ("config.json", "generation_config.json")
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "chat_template.jinja", "chat_template.json", "tokenizer.json",
             "tokenizer_config.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "added_tokens.json",
             "special_tokens_map.json")  # fmt: skip
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")
"""One of these stands wherever a tokenizer does."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
"""What an index may name. It comes from outside, so a name with a folder in it, or of another kind of file, is refused."""
COMMIT = re.compile(r"[0-9a-f]{40}")

_PATIENCE = 10.0  # seconds for the Hub to say which commit a revision is; files have HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT
_ASK_AGAIN = (1.0,)  # seconds before the Hub is asked once more which commit a revision is
_LOAD_AGAIN = (1.0, 4.0)  # seconds before a broken download is begun again, after the Hub's library has resumed it several times
# What a lost connection raises: HTTPError is the base class of the errors of the HTTP library that the Hub's library uses, RuntimeError
# is what its other transfer protocol (Xet) has.
_FAILURES = (HTTPError, OSError, RuntimeError)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Repository:
    """A repository of the Hub at a revision, and the words that asked for it."""

    id: str
    """``organisation/name``."""
    revision: str
    """A branch, a tag or a commit."""
    asked: str
    """The flag and the name as given, for messages."""


class _Broken(OSError):
    """A download that ended without an error and without all files."""


def checkpoint_folder(
    name: str | Path, *, revision: str | None = None, flag: str, contents: Contents = "model", download: bool = True
) -> Path:
    """The local folder of a checkpoint, fetched into the usual cache where ``name`` is a repository.

    A repository's folder holds the files of one commit. Settings, processor and safetensors weights alone are fetched; processes that ask
    at once fetch each file once. When the Hub cannot be asked and the cache holds what is wanted, that is used, with a warning. HF_HOME,
    HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to Hugging Face's own tools.

    Args:
        name: a folder, which wins where it exists; else ``organisation/name`` or ``organisation/name@revision``.
        revision: branch, tag or commit of the repository; None is its default branch.
        flag: what the user calls ``name``, for messages.
        contents: the whole ``model`` with its processor, the ``processor`` with the settings, or the ``settings`` alone.
        download: False takes what the cache holds, as HF_HUB_OFFLINE does.

    Returns:
        The folder as given, or that of the repository's commit in the cache.

    Raises:
        InputError: ``name`` is neither, a revision of a folder is asked for, or the repository cannot be had: it or the revision does not
            exist, may not be read, is no checkpoint, or is not in the cache whole and cannot be downloaded.
    """
    repository = repository_of(name, revision=revision, flag=flag)
    if repository is None:
        return Path(name)
    if is_offline_mode() or not download:
        folder, absent = _cached(repository, contents)
        if folder is None:
            raise _unreachable(repository, "HF_HUB_OFFLINE is set" if is_offline_mode() else "downloads are not asked for", absent)
        return folder
    try:
        return _downloaded(repository, contents)
    except RevisionNotFoundError as error:
        raise InputError(
            f"{repository.asked}: {repository.id} has no revision '{repository.revision}' on {_host()}; give a branch, a tag or a commit"
        ) from error
    except _FAILURES as error:
        return _instead(repository, contents, error)


def pinned(name: str | Path, *, revision: str | None = None, flag: str) -> Path:
    """The name by which every process, on every machine and later too, gets the same files: a folder as given, else ``id@commit``.

    Fetches no more than a repository's settings. Arguments and errors are ``checkpoint_folder``'s.
    """
    repository = repository_of(name, revision=revision, flag=flag)
    if repository is None:
        return Path(name)
    folder = checkpoint_folder(name, revision=revision, flag=flag, contents="settings")
    return Path(f"{repository.id}@{folder.name}")


def commit_of(folder: Path) -> str | None:
    """The commit whose files a folder of the cache holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


def repository_of(name: str | Path, *, revision: str | None = None, flag: str) -> Repository | None:
    """The repository that a name means, whether the Hub has it or not; None where it is a folder. Arguments are ``checkpoint_folder``'s.

    Raises:
        InputError: it is neither, or a revision of a folder is asked for.
    """
    text, asked = Path(name).as_posix(), f"{flag} {name}"
    base, _, behind = text.partition("@")
    if Path(text).is_dir():
        base, behind = text, ""
    if Path(base).is_dir():
        if wanted := revision or behind:
            raise InputError(f"{asked}: is a folder here, which has no revision '{wanted}'; leave the revision out, or move the folder")
        return None
    if Path(text).exists():
        raise InputError(f"{asked}: is a file; give the folder of a checkpoint, which holds config.json and model.safetensors")
    try:
        validate_repo_id(base)
        # A single word is far more often a folder's name mistyped than one of the Hub's few old names.
        is_id = base.count("/") == 1
    except HFValidationError:
        is_id = False
    if not is_id:
        raise InputError(
            f"{asked}: no such folder, and no name of a repository of the Hugging Face Hub either; give the folder of a checkpoint, or "
            "organisation/name, with @revision behind it if you like"
        )
    if behind and revision and behind != revision:
        raise InputError(f"{asked}: names the revision '{behind}', and another flag asks for '{revision}'; give only one of them")
    return Repository(base, behind or revision or constants.DEFAULT_REVISION, asked)


def _downloaded(repository: Repository, contents: Contents) -> Path:
    """The folder of the repository's commit, with all that ``contents`` needs in it."""
    info = _retried(lambda: HfApi().model_info(repository.id, revision=repository.revision, timeout=_PATIENCE), _ASK_AGAIN)
    commit, there = str(info.sha), {file.rfilename for file in info.siblings or ()}
    needed = [name for name in (*SETTINGS, *(PROCESSOR if contents != "settings" else ())) if name in there]
    if contents == "model":
        needed += [name for name in (WEIGHTS, INDEX) if name in there][:1]
    if lacking := _lacking(there.__contains__, contents):
        pickled = "; weights as pickles are not loaded, since that can run code" if lacking == [WEIGHTS] else ""
        raise InputError(
            f"{repository.asked}: {repository.id} at '{repository.revision}' has no {' and no '.join(lacking)}{pickled}; give the "
            "repository, or the revision, of a checkpoint in Transformers' format"
        )

    def load() -> Path:
        # Asked for by its revision, the commit is noted in the cache, so that the revision is found there without a network too.
        folder = _snapshot(repository, needed if WEIGHTS not in needed else needed[:-1])
        if folder.name != commit:  # the revision moved on after the question above
            folder = _snapshot(repository, needed, commit)
        files = needed + (_shards(folder, repository) if INDEX in needed else [])
        if gone := [name for name in files if name not in there]:
            raise InputError(f"{repository.asked}: {repository.id} at '{repository.revision}' has no {gone[0]}, which its {INDEX} names")
        _snapshot(repository, files, commit)
        if broken := [name for name in files if not (folder / name).is_file()]:
            raise _Broken(f"the download ended without {', '.join(broken)}")
        return folder

    return _retried(load, _LOAD_AGAIN)


def _snapshot(repository: Repository, files: Sequence[str], revision: str | None = None, *, download: bool = True) -> Path:
    """The cache's folder of a revision, the repository's own by default, with these files of those that it has."""
    wanted = revision or repository.revision
    return Path(snapshot_download(repository.id, revision=wanted, allow_patterns=list(files), local_files_only=not download))


def _cached(repository: Repository, contents: Contents) -> tuple[Path | None, list[str]]:
    """The cache's folder of the repository's revision; None where it is not whole, and what it lacks as far as that is known."""
    try:
        folder = _snapshot(repository, (*SETTINGS, *(PROCESSOR if contents != "settings" else ())), download=False)
    except LocalEntryNotFoundError:
        return None, []
    lacking = _lacking(lambda name: (folder / name).is_file(), contents)
    if not lacking and contents == "model" and not (folder / WEIGHTS).is_file():
        lacking = [name for name in _shards(folder, repository) if not (folder / name).is_file()]
    return (None if lacking else folder), lacking


def _lacking(there: Callable[[str], bool], contents: Contents) -> list[str]:
    """What no checkpoint can be without and is not there."""
    lacking = [] if contents == "processor" or there(SETTINGS[0]) else [SETTINGS[0]]
    if contents == "model" and not (there(WEIGHTS) or there(INDEX)):
        lacking.append(WEIGHTS)
    if contents == "processor" and not any(there(name) for name in VOCABULARIES):
        lacking.append(VOCABULARIES[0])
    return lacking


def _shards(folder: Path, repository: Repository) -> list[str]:
    """The files that the index in a folder names.

    Raises:
        InputError: it is no index, or names something that is no safetensors file beside it.
    """
    try:
        names = sorted(set(parse_json_object((folder / INDEX).read_bytes())["weight_map"].values()))
        wrong = [name for name in names if not SHARD.fullmatch(name)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{repository.asked}: {INDEX} of {repository.id} is no index of shards ({error!r})") from error
    if wrong:
        raise InputError(f"{repository.asked}: {INDEX} of {repository.id} names {wrong[0]!r}, which is no safetensors file beside it")
    return names


def _retried(work: Callable[[], T], pauses: Sequence[float]) -> T:
    """What ``work`` returns, begun again after each pause while a failure may pass."""
    for pause in pauses:
        try:
            return work()
        except _FAILURES as error:
            if not _may_pass(error):
                raise
            time.sleep(pause)
    return work()


def _may_pass(error: Exception) -> bool:
    """Whether a failure may be gone in a few seconds."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return not isinstance(error, LocalEntryNotFoundError) and not (isinstance(error, OSError) and error.errno in _DISK)


def _instead(repository: Repository, contents: Contents, error: Exception) -> Path:
    """What the cache holds, now that the Hub did not serve, with a warning.

    Raises:
        InputError: it does not hold all, or cannot be written to.
    """
    if isinstance(error, OSError) and error.errno in _DISK:
        raise InputError(
            f"{repository.asked}: the cache {constants.HF_HUB_CACHE} cannot be written to ({error.strerror}); make room there, or set "
            "HF_HOME to a folder with room"
        ) from error
    reason = _reason(repository, error)
    folder, absent = _cached(repository, contents)
    if folder is not None:
        warnings.warn(f"{repository.asked}: {reason}; commit {folder.name} is used, which the cache has", RuntimeWarning, stacklevel=3)
        return folder
    if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
        raise InputError(f"{repository.asked}: {reason}") from error
    raise _unreachable(repository, reason, absent) from error


def _reason(repository: Repository, error: Exception) -> str:
    """Why the Hub did not serve, in words without an address, which might carry a signature."""
    page = f"{_host()}/{repository.id}"
    if isinstance(error, GatedRepoError):
        return f"its owners grant access on request; ask for it at {page}, then set HF_TOKEN or run hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return f"no such folder here, and no repository {page}; check the spelling, and set HF_TOKEN or run hf auth login if it is private"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        refused = "; the token is not accepted: set HF_TOKEN anew, or unset it" if status in (401, 403) else ""
        return f"{_host()} answered with HTTP status {status}{refused}"
    said = re.sub(r"\S+://\S+", "…", str(error.__cause__ or error).strip().partition("\n")[0])
    return f"{_host()} could not be reached or broke off ({said or type(error).__name__})"


def _unreachable(repository: Repository, reason: str, absent: Sequence[str]) -> InputError:
    held = f"only a part of it (no {', '.join(absent[:5])})" if absent else "no such repository at that revision"
    return InputError(
        f"{repository.asked}: no such folder here; taken for the repository {repository.id} at '{repository.revision}': {reason}, and the "
        f"cache {constants.HF_HUB_CACHE} has {held}. Give the folder of a checkpoint, set HF_HOME to a cache that holds it, or unset "
        "HF_HUB_OFFLINE and see to the network"
    )


def _host() -> str:
    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
