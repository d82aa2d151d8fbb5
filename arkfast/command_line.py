"""Command lines and YAML files from frozen dataclasses.

A configuration is a frozen, keyword-only dataclass with one sentence under each field. The sentence is the flag's help text, the annotation
is its type, and the field's default is its default. Nothing else declares a flag, so there can be none that no code reads. Each
configuration lives beside the code that it configures.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from arkfast.files.inputs import local_path
from arkfast.files.remote import as_path
from arkfast.records import InputError

C = TypeVar("C")

FIRST, MODEL, DATA, OBJECTIVE, TRAINING = "what to give first", "models", "data", "objective", "training"
DECODING, SCORING, COMPARING, CHECKS = "decoding", "scoring", "comparing with another evaluation", "checks"
ADDRESS, LIMITS = "address and keys", "limits"
OUTPUT, MACHINE, OTHERS = "output", "device and processes", "other flags"
WITHOUT_EFFECT = "flags of open-audio-opd that have no effect here"
HEADINGS = (
    FIRST, MODEL, DATA, OBJECTIVE, TRAINING, DECODING, SCORING, COMPARING, CHECKS, ADDRESS, LIMITS, OUTPUT, MACHINE,
    OTHERS, WITHOUT_EFFECT,
)  # fmt: skip
"""What ``--help`` puts flags under, in this order. A configuration says so in its ``headings``: the first field under each, for those that
the class itself declares; a field without an entry stands under its predecessor's heading."""


def field_docs(cls: type) -> dict[str, str]:
    """The sentence that stands as a string literal under each field of a dataclass, base classes first."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(following, ast.Expr)
                and isinstance(following.value, ast.Constant)
                and isinstance(following.value.value, str)
            ):
                docs[statement.target.id] = " ".join(following.value.value.split())
    return docs


def _parse_bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off"}:
        return False
    raise ValueError(f"expected True or False, got '{text}'")


def _convert(value: Any, annotation: object) -> Any:
    """``value`` (a flag's text or a YAML scalar) as ``annotation`` asks; raises ValueError saying what was expected."""
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        if value is None or (isinstance(value, str) and value.lower() in {"none", "null"}):
            return None
        return _convert(value, inner[0])
    if origin is Literal:
        choices = typing.get_args(annotation)
        for choice in choices:
            if str(value) == str(choice):
                return choice
        raise ValueError(f"expected one of {', '.join(map(str, choices))}, got '{value}'")
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else list(value)
        return tuple(_convert(item, typing.get_args(annotation)[0]) for item in items)
    if annotation is bool:
        return value if isinstance(value, bool) else _parse_bool(str(value))
    if annotation is Path:
        return as_path(local_path(str(value)))
    if annotation is int or annotation is float:
        kind = int if annotation is int else float
        if isinstance(value, bool):
            raise ValueError(f"expected {kind.__name__}, got {value}")
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"expected {kind.__name__}, got '{value}'") from error
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"expected a finite number, got '{value}'")
        if isinstance(number, int) and not -(1 << 63) <= number < 1 << 63:
            raise ValueError(f"expected a whole number of 64 bits at most, got '{value}'")
        return number
    if annotation is str:
        if isinstance(value, (dict, list)):
            raise ValueError(f"expected text, got {value}")
        return str(value)
    raise TypeError(f"config: no rule for the annotation {annotation}")


def _help(field: dataclasses.Field[Any], doc: str, *, in_position: bool) -> str:
    text = f"{doc} May stand without the flag's name." if in_position else doc
    if _is_required(field):
        text += " Required."
    elif field.default not in (dataclasses.MISSING, None, "", ()) and "default" not in doc.lower():
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text += f" Default: {default}."
    return text.replace("%", "%%")


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def groups(cls: type) -> dict[str, list[str]]:
    """The names of a configuration's fields under their headings, in the order in which ``--help`` shows them."""
    known = [field.name for field in dataclasses.fields(cls)]
    found: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    placed: set[str] = set()
    for base in cls.__mro__:
        heading, given = OTHERS, base.__dict__.get("headings", {})
        for name in inspect.get_annotations(base):
            heading = given.get(name, heading)
            if name in known and name not in placed:
                found[heading].append(name)
                placed.add(name)
    return {heading: names for heading, names in found.items() if names}


def _read_yaml(path: Path, names: Sequence[str]) -> dict[str, object]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"--config {path}: expected a mapping of flags to values, got {type(data).__name__}")
    data = {str(key).replace("-", "_"): value for key, value in data.items()}
    for key in data:
        if key not in names:
            raise InputError(f"--config {path}: unknown key '{key}'{_did_you_mean(key, names)}")
    return data


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    # People also write a name's initials (lr) or some of its words (batch_size), which look little like the whole.
    words = set(name.split("_"))
    initials = [other for other in known if len(name) > 1 and "".join(word[:1] for word in other.split("_")) == name]
    parts = [other for other in known if words <= set(other.split("_"))]
    near = list(dict.fromkeys([*initials, *difflib.get_close_matches(name, known, n=3, cutoff=0.6), *parts]))[:3]
    return f"; did you mean {' or '.join(near)}?" if near else "; --help lists what there is"


class _Parser(argparse.ArgumentParser):
    """argparse, with dashes and underscores alike in flag names and a near match named for an unknown flag."""

    def error(self, message: str) -> typing.NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def parse(
    cls: type[C],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    position: str | None = None,
    further: str | None = None,
    without_effect: Mapping[str, str] = types.MappingProxyType({}),
) -> C:
    """An instance of the dataclass ``cls`` from a command line, over a YAML file given with ``--config``, over the defaults.

    Args:
        cls: a frozen, keyword-only dataclass with a sentence under each field.
        argv: the flags, without the program's name; ``--flag_name`` and ``--flag-name`` are the same flag, and a boolean one that stands
            alone is true.
        prog: how the usage line and errors call the command.
        description: the help's first sentence.
        position: a field whose value may stand without its flag's name.
        further: a field of several values that takes what stands behind that one.
        without_effect: further flags that the help names, each with the reason why nothing reads it; they are taken out of ``argv`` before.

    Raises:
        SystemExit: 0 after ``--help``; 2 with one line on standard error for an unknown flag or a value of the wrong kind.
    """
    hints = typing.get_type_hints(cls)
    docs = field_docs(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    parser = _Parser(
        prog=prog, description=description, usage=_usage(prog, fields, hints, position, further), allow_abbrev=False, add_help=False
    )
    for heading, names in (groups(cls) | ({WITHOUT_EFFECT: []} if without_effect else {})).items():
        group = parser.add_argument_group(heading)
        for name in sorted(names, key=lambda name: name != position):
            group.add_argument(
                f"--{name}",
                default=argparse.SUPPRESS,
                metavar=_metavar(hints[name]),
                help=_help(fields[name], docs.get(name, ""), in_position=name == position),
                **_SWITCH if _plain(hints[name]) is bool else {},
            )
        if heading == WITHOUT_EFFECT:
            for name, why in without_effect.items():
                group.add_argument(f"--{name}", metavar="VALUE", help=why.replace("%", "%%"))
    last = parser.add_argument_group("help, and flags from a file")
    last.add_argument("--config", type=Path, metavar="YAML", help="A YAML file of flags and values; flags given here win over it.")
    last.add_argument("-h", "--help", action="help", help="Show this and end.")
    normalised = [_underscored(word) for word in argv]
    if position is not None:
        normalised = _switched(normalised, {f"--{name}" for name in fields if _plain(hints[name]) is bool})
    known, unknown = parser.parse_known_args(normalised)
    for word in unknown:
        if word.startswith("-") and word != "-":  # what follows it may be its value
            parser.error(f"unknown flag {word}{_did_you_mean(word.lstrip('-').split('=')[0], list(fields))}")
    if position is not None:
        words = [word for word in unknown if word == "-" or not word.startswith("-")]
        if words and hasattr(known, position):
            parser.error(f"unexpected argument '{words[0]}': --{position} is given too; give one of them")
        if words:
            setattr(known, position, words[0])
            unknown.remove(words[0])
        if further is not None and words[1:] and not hasattr(known, further):
            setattr(known, further, words[1:])
            unknown = [word for word in unknown if word not in words[1:]]
    for word in unknown:
        parser.error(f"unexpected argument '{word}'")
    try:
        given = _read_yaml(known.config, list(fields)) if known.config else {}
        given |= {name: value for name, value in vars(known).items() if name in fields}
        values = {}
        for name, value in given.items():
            try:
                values[name] = _convert(value, hints[name])
            except ValueError as error:
                raise InputError(f"--{name}: {error}") from error
        missing = [f"--{name}" for name, field in fields.items() if name not in values and _is_required(field)]
        if missing:
            raise InputError(f"required: {', '.join(missing)}")
        return cls(**values)
    except ValueError as error:
        parser.error(str(error))


_SWITCH: dict[str, Any] = {"nargs": "?", "const": "true"}
"""How a boolean flag is declared: alone it is true."""


def _plain(annotation: object) -> object:
    """The annotation, or the first kind of value that it holds besides None."""
    inner = [a for a in typing.get_args(annotation) if a is not type(None)]
    return inner[0] if inner else annotation


def _usage(
    prog: str, fields: Mapping[str, dataclasses.Field[Any]], hints: Mapping[str, object], position: str | None, further: str | None
) -> str:
    """The command with what it cannot do without."""
    required = [f"--{name} {_metavar(hints[name])}" for name, field in fields.items() if _is_required(field) and name != position]
    placed = [] if position is None else [position.upper(), *([f"[{position.upper()} ...]"] if further is not None else [])]
    words = [prog, *placed, *required, "[--flag value ...]"]
    return " ".join(words).replace("%", "%%")


def _switched(words: Sequence[str], switches: set[str]) -> list[str]:
    """The words with ``=true`` behind each boolean flag that has no value, so that it does not take what stands in a position for one."""
    values = {"1", "true", "yes", "on", "0", "false", "no", "off", "none", "null"}
    following = [*(word.strip().lower() for word in words[1:]), ""]
    return [f"{word}=true" if word in switches and then not in values else word for word, then in zip(words, following, strict=False)]


def _metavar(annotation: object) -> str:
    plain = _plain(annotation) if typing.get_origin(annotation) is not Literal else annotation
    several = ",..." if typing.get_origin(annotation) is tuple else ""
    if typing.get_origin(plain) is Literal:
        return "{" + ",".join(map(str, typing.get_args(plain))) + "}" + several
    names: dict[object, str] = {int: "INT", float: "FLOAT", bool: "BOOL", Path: "PATH"}
    return names.get(plain, "TEXT") + several


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values, for logs and checkpoints."""
    return {
        key: [_plain_value(item) for item in value] if isinstance(value, tuple) else _plain_value(value)
        for key, value in dataclasses.asdict(config).items()
    }


def _plain_value(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
