"""How arkfast is installed: the distribution's name, the words by which messages name an extra, and packages that stand in its way.

The distribution is named ``arkfast-opd`` and the package that one imports ``arkfast``. On the package index the name ``arkfast`` belongs to
somebody else's project, so no message and no document may tell anybody to install it. No index has ``arkfast-opd`` either, so far: hints
name the checkout.
"""

from __future__ import annotations

import email
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "arkfast-opd"
_PACKAGE = "arkfast"
_SUMMARY = "On-policy distillation and inference for compact speech-recognition models"
"""The description in ``pyproject.toml``, by which an installation of this project under its earlier name, ``arkfast``, is known."""


def install_hint(*extras: str) -> str:
    """The command that installs arkfast with the given extras, as messages name it."""
    return f"pip install -e {_target(extras)} (in a checkout of arkfast)"


def _target(extras: tuple[str, ...]) -> str:
    return f"'.[{','.join(extras)}]'" if extras else "."


@dataclass(frozen=True, kw_only=True)
class Namesake:
    """An installed distribution, other than ours, that has the name ``arkfast`` or brings a top-level package ``arkfast``."""

    name: str
    """Its name, as its metadata writes it."""
    version: str
    """Its version; "?" where its metadata does not say."""
    folder: Path
    """The folder that it is installed in."""
    ours: bool
    """Whether it is this project under its earlier name."""
    provides_package: bool
    """Whether it brings a top-level package ``arkfast``, whose files can hide ours or lie among them."""

    def advice(self) -> str:
        """One sentence: what it is, and what to do about it."""
        leftover = self.folder / f"{_PACKAGE}.egg-info"
        remedy = f"pip uninstall {self.name}"
        if self.ours:
            what = "is this project under its earlier name"
            if leftover.exists():  # left beside the sources by a build: pip does not remove it
                remedy = f"delete {leftover}"
        elif self.provides_package:
            what = "is another project's package, whose files can hide this one's or mix with them"
        else:
            what = "is another project's package, which has the name of this one's import"
        return f"{self.name} {self.version} in {self.folder} {what}: {remedy}, then {install_hint('asr')}"


def namesakes() -> list[Namesake]:
    """All namesakes on ``sys.path``, each once. Reads their metadata and imports nothing."""
    found = {(one.name, one.folder): one for one in _namesakes()}
    return list(found.values())


def _namesakes() -> Iterator[Namesake]:
    for distribution in metadata.distributions():
        # Read as text: a damaged installation has no metadata, and importlib.metadata then fails differently in each version of Python.
        fields = email.message_from_string(distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "")
        name = fields["Name"] or ""
        provides_package = _provides_package(distribution)
        if _normalised(name) == DISTRIBUTION or not (_normalised(name) == _PACKAGE or provides_package):
            continue
        yield Namesake(
            name=name or "a distribution without a name",
            version=fields["Version"] or "?",
            folder=Path(str(distribution.locate_file(""))).resolve(),
            ours=_normalised(name) == _PACKAGE and fields["Summary"] == _SUMMARY,
            provides_package=provides_package,
        )


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _provides_package(distribution: metadata.Distribution) -> bool:
    if _PACKAGE in (distribution.read_text("top_level.txt") or "").split():
        return True
    return re.search(rf"^{_PACKAGE}(/|\.py,)", distribution.read_text("RECORD") or "", re.MULTILINE) is not None
