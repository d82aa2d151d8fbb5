"""Files of other machines, by addresses such as ``s3://bucket/a.wav``: what they are called in messages, how large they are, and copies.

fsspec reads them, with a package for each kind of address. An address may hold a password or a signature; whatever is said of it goes
through ``shown`` or ``scrubbed`` first.
"""

from __future__ import annotations

import errno
import random
import re
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

from arkfast.files.names import clear
from arkfast.installation import install_hint
from arkfast.records import InputError

if TYPE_CHECKING:
    import aiohttp
    from fsspec import AbstractFileSystem

PACKAGES = {
    "http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "abfss": "adlfs", "hf": "huggingface_hub", "memory": "fsspec",
}  # fmt: skip
"""Kinds of addresses that are read, with the package that fsspec needs for each. Kinds that name files of this machine, and chains of
several, are none of them: a manifest from elsewhere could have them opened."""
WAITS = (0.5, 2.0, 8.0)
"""Seconds before each further try after a fault that may pass, half as long up to half as long again."""
CONNECT_SECONDS, SILENT_SECONDS = 30.0, 30.0
"""A web server that cannot be reached for so long, or sends nothing for so long, is a fault that may pass."""
SIGNING = re.compile(
    r"(?i)x-(amz|goog|oss|cos)-.*|signature|sig|expires|awsaccesskeyid|googleaccessid|ossaccesskeyid|key-pair-id|policy|token|access_token"
    r"|s[etvprk]|spr|sk[a-z]{1,3}|sip|sdd|saoid|suoid|scid|security-token"
)
"""Names of a query's fields that say who may read and until when, and not what."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]+")
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?=[^/])")
_BLOCK = 1 << 20  # bytes
_MOST_LISTED = 1_000_000
_PASSING = frozenset({408, 425, 429})  # answers of a server that may be others a moment later, as those from 500 on

_systems: dict[str, AbstractFileSystem] = {}
_making = threading.Lock()


class RemoteError(InputError):
    """A file of another machine cannot be had. The message says why, without its address.

    Args:
        reason: why.
        passing: whether that may be otherwise a moment later.
    """

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


def is_remote(given: str) -> bool:
    """Whether a path is the address of a file elsewhere; ``file://`` names one of this machine."""
    found = _ADDRESS.match(given)
    return found is not None and found[1].lower() != "file"


def address_in(path: Path) -> str | None:
    """The address that was taken for a path, which has lost one of its two slashes; None where it is a path."""
    address = _COLLAPSED.sub(r"\1://", str(path), count=1) if _COLLAPSED.match(str(path)) else str(path)
    return address if is_remote(address) and not path.exists() else None


def as_path(given: str) -> Path:
    """A path, or an address in the place of one, which ``address_in`` gives back.

    Raises:
        InputError: an address that would be another one as a path.
    """
    path = Path(given)
    if is_remote(given) and address_in(path) != given.rstrip("/"):
        raise InputError(f"{shown(given)}: an address with // or /. behind its beginning cannot be given here; name it in a manifest's row")
    return path


def shown(address: str) -> str:
    """The address as messages have it: without a user's name and password, a query or a fragment, where signatures and keys stand."""
    found = _ADDRESS.match(address)
    if found is None:
        return address
    rest = re.split(r"[?#]", address[found.end() :], maxsplit=1)
    return f"{found[0]}{_without_user(rest[0], found[1])}" + ("?…" if len(rest) > 1 else "")


def _without_user(rest: str, kind: str) -> str:
    """An address behind its ``://`` without a user and a password; before the @ of other kinds than the web's may stand a store's part."""
    host, slash, path = rest.partition("/")
    user, _, server = host.rpartition("@")
    return f"{server if _of_the_web(kind) or ':' in user else host}{slash}{path}"


def _of_the_web(kind: str) -> bool:
    return kind.lower() in ("http", "https")


def scrubbed(text: str) -> str:
    """A text whose addresses stand as ``shown`` has them."""
    return _IN_TEXT.sub(lambda found: shown(found[0]), text)


def shown_argument(argument: str) -> str:
    """An argument of a command line, with its address as ``shown`` has it. There may be blanks in the address, which end it in a text."""
    found = _ADDRESS.search(argument)
    if found is None or not is_remote(argument[found.start() :]):
        return argument
    return argument[: found.start()] + shown(argument[found.start() :])


def identity(address: str) -> str:
    """What of an address says which file it is: all but what signs it, so that a manifest that was signed anew names the same files."""
    found = _ADDRESS.match(address)
    if found is None or not _of_the_web(found[1]):
        return address
    path, _, query = address[found.end() :].partition("#")[0].partition("?")
    fields = [(key, value) for key, value in parse_qsl(query, keep_blank_values=True) if not SIGNING.fullmatch(key)]
    return f"{found[0]}{_without_user(path, found[1])}" + (f"?{urlencode(fields)}" if fields else "")


def beside(folder: str, name: str) -> str:
    """The address of a file by its path in a folder elsewhere. On the web, signs of a name that would begin a query are spelled."""
    if _of_the_web(folder.partition("://")[0]):
        name = name.replace("?", "%3F").replace("#", "%23")
    return f"{folder}/{name}"


def check_remote(address: str) -> None:
    """Raise ``InputError`` for an address of a kind that is not read, or whose package is not installed."""
    found = _ADDRESS.match(address)
    kind = "" if found is None else found[1].lower()
    if kind not in PACKAGES:
        kinds = ", ".join(f"{name}://" for name in PACKAGES if name != "memory")
        raise InputError(f"{shown(address)}: is an address of a kind that is not read; {kinds} are, and whatever is mounted here")
    if not _installed("fsspec"):
        raise InputError(f"{shown(address)}: needs the package fsspec, {install_hint('remote')}; or copy the files here")
    if not _installed(PACKAGES[kind]):
        raise InputError(f"{shown(address)}: needs the package {PACKAGES[kind]}, pip install {PACKAGES[kind]}; or copy the files here")


@cache
def _installed(package: str) -> bool:
    """Whether a package is there. Finding out takes a tenth of a millisecond, and every row asks."""
    return find_spec(package) is not None


def remote_size(address: str) -> int | None:
    """Bytes of a file elsewhere, without fetching it; None where nobody says.

    Raises:
        InputError: as ``check_remote``.
        RemoteError: there is no such file, or it cannot be reached.
    """
    with _naming_faults():
        size = _system(address).info(address)["size"]
        return None if size is None else int(size)


def listed(address: str) -> list[str]:
    """The addresses of the files that a folder's address, or a pattern, stands for, sorted; [] where it is a file's or stands for nothing.

    Raises:
        InputError: as ``check_remote``.
        RemoteError: the other machine cannot be reached, or has more than a million of them.
    """
    with _naming_faults():
        system, kind = _system(address), address.partition("://")[0].lower()
        if _of_the_web(kind):  # a web server has pages and no folders, and its files' names may hold a ?
            return []
        path = system._strip_protocol(address)
        names = system.glob(path) if set(path) & set("*?[") else [] if system.isfile(path) else system.find(path)
        if len(names) > _MOST_LISTED:
            raise RemoteError(f"stands for more than {_MOST_LISTED} files; give a manifest")
        return sorted(f"{kind}://{str(name).lstrip('/')}" for name in names)


class Opened:
    """A file elsewhere that is about to be copied.

    Attributes:
        size: bytes it has; None where nobody says.
    """

    def __init__(self, address: str) -> None:
        system = _system(address)
        if _of_the_web(address.partition("://")[0]):
            # With a size given, fsspec asks for the file at once, where it would otherwise ask for its size before.
            self._file = system.open(address, "rb", block_size=0, size=1, headers={"Accept-Encoding": "identity"})
            said = self._file.r.headers
            known = said.get("Content-Length") if said.get("Content-Encoding", "identity") == "identity" else None
        else:
            known = system.info(address)["size"]
            self._file = system.open(address, "rb")
        self.size = None if known is None else int(known)

    def copy(self, target: Path, most: int, stop: threading.Event, *, hint: str = "") -> int:
        """Write the file to ``target`` and return how many bytes it has.

        Args:
            target: a path here.
            most: bytes that it may have.
            stop: ends the copying when it is set.
            hint: what is said where it has more.

        Raises:
            RemoteError: it has more than ``most`` bytes, fewer than were announced, or ``stop`` was set.
        """
        count = 0
        with target.open("wb") as out:
            while block := self._file.read(_BLOCK):
                count += len(block)
                if count > most:
                    raise RemoteError(f"has more than {most} bytes, which is the limit{hint}")
                if stop.is_set():
                    raise RemoteError("is not wanted any more")
                out.write(block)
        if self.size is not None and count != self.size:
            raise RemoteError(f"broke off after {count} of {self.size} bytes", passing=True)
        return count

    def close(self) -> None:
        """Read no more."""
        self._file.close()


@contextmanager
def opened(address: str) -> Iterator[Opened]:
    """A file elsewhere, for as long as the block lasts.

    Raises:
        InputError: as ``check_remote``.
        RemoteError: what the other machine, or the way there, is at fault for, in the block too.
    """
    with _naming_faults(), closing(Opened(address)) as found:
        yield found


def tries(stop: threading.Event) -> Iterator[int]:
    """The numbers of tries that a fault is worth, with longer and longer waits before all but the first; none once ``stop`` is set."""
    yield 0
    for number, seconds in enumerate(WAITS, start=1):
        if stop.wait(seconds * (0.5 + random.random())):
            return
        yield number


def fetch(address: str, target: Path, *, most: int) -> int:
    """Copy a file from elsewhere, whole or not at all, and return how many bytes it has.

    Raises:
        InputError: as ``check_remote``, or it cannot be had, as the message says after its address, or has more than ``most`` bytes.
    """
    never, fault = threading.Event(), RemoteError("cannot be had")
    for _ in tries(never):
        try:
            with opened(address) as found:
                if found.size is not None and found.size > most:
                    raise RemoteError(f"has {found.size} bytes, over the limit of {most}")
                return found.copy(target, most, never)
        except RemoteError as error:
            fault = error
            clear(target)
            if not error.passing:
                break
    raise InputError(f"{shown(address)}: {fault}") from fault


def _system(address: str) -> AbstractFileSystem:
    check_remote(address)
    import fsspec

    kind = address.partition("://")[0].lower()
    with _making:
        if kind not in _systems:
            options: dict[str, object] = {}
            if _of_the_web(kind):
                import aiohttp

                timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
                options["client_kwargs"] = {"timeout": timeout, "trust_env": True, "trace_configs": [_watching_redirects()]}
            _systems[kind] = fsspec.filesystem(kind, skip_instance_cache=True, **options)
        return _systems[kind]


def _watching_redirects() -> aiohttp.TraceConfig:
    """Refuses to be led to another kind of address, and from https to http, where anybody on the way could read and change the file."""
    import aiohttp
    from yarl import URL

    async def check(session: object, context: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
        headers = redirect.response.headers
        target = redirect.url.join(URL(headers.get("Location") or headers.get("URI") or ""))
        if target.scheme not in ("http", "https") or (redirect.url.scheme == "https" and target.scheme == "http"):
            raise RemoteError(f"the server leads on from {redirect.url.scheme}:// to {target.scheme}://, which is not followed")

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(check)
    return config


@contextmanager
def _naming_faults() -> Iterator[None]:
    """What fsspec and the packages behind it raise becomes a ``RemoteError``; what is wrong on this machine stays as it is."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each of those packages has errors of its own
        raise _fault(error) from error


def _fault(error: BaseException) -> RemoteError:
    chain = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    for one in chain:
        if isinstance(one, RemoteError):
            return one
        status = getattr(one, "status", None)
        if isinstance(status, int) and status >= 400:
            if status in (404, 410):
                return RemoteError("there is no such file")
            if status in (401, 403):
                return RemoteError(f"the server refuses it ({status}); are credentials wanted, or has a signature run out?")
            return RemoteError(f"the server answers {status}", passing=status in _PASSING or status >= 500)
    for one in chain:
        if isinstance(one, PermissionError):
            return RemoteError("no permission to read it; are credentials set?")
        late = type(one).__name__ in ("TimeoutError", "FSTimeoutError")  # before Python 3.11 there are several of that name
        if late or isinstance(one, ConnectionError) or type(one).__module__.partition(".")[0] == "aiohttp":
            passing = type(one).__name__ not in ("InvalidURL", "NonHttpUrlClientError", "NonHttpUrlRedirectClientError", "TooManyRedirects")
            return RemoteError(f"cannot be reached ({type(one).__name__}: {_line(one)})", passing=passing)
    if any(isinstance(one, FileNotFoundError) for one in chain):
        return RemoteError("there is no such file")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return RemoteError(f"cannot be written to the disk here ({error.strerror})")
    passing = isinstance(error, OSError) and not isinstance(error, (IsADirectoryError, NotADirectoryError))
    return RemoteError(f"cannot be read ({type(error).__name__}: {_line(error)})", passing=passing)


def _line(error: BaseException) -> str:
    return " ".join(scrubbed(str(error)).split())[:300]
