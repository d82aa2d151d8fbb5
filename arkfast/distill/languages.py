"""What a teacher was told of the languages of a batch, and under which names that is counted in the log.

The names are fixed, so that the counts of all ranks travel with a step's other numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_TOLD = (
    "Arabic", "Cantonese", "Chinese", "Croatian", "Czech", "Danish", "Dutch", "English", "Estonian", "Filipino", "Finnish", "French",
    "German", "Greek", "Hindi", "Hungarian", "Indonesian", "Italian", "Japanese", "Korean", "Lithuanian", "Macedonian", "Malay", "Persian",
    "Polish", "Portuguese", "Romanian", "Russian", "Slovak", "Slovene", "Spanish", "Swedish", "Thai", "Turkish", "Vietnamese",
)  # fmt: skip
DETECTED, ANOTHER = "detected", "another"
"""The teacher found the language out; a language that has no name here."""
_NAMES = {"hr": "Croatian", "sk": "Slovak", "sl": "Slovene", "et": "Estonian", "lt": "Lithuanian"}
_SKIPPED, _REFERENCE = "skipped: ", "reference: "
COUNTED = (*_TOLD, DETECTED, *(kind + name for kind in (_SKIPPED, _REFERENCE) for name in (*_NAMES.values(), ANOTHER)), ANOTHER)
"""Every name that is counted."""


def skipped(code: str) -> str:
    """The name under which a row is counted whose language, of this code, the teacher does not know and which it left out."""
    return _SKIPPED + _NAMES.get(code, ANOTHER)


def by_reference(code: str) -> str:
    """The name under which such a row is counted where the student learns its reference instead."""
    return _REFERENCE + _NAMES.get(code, ANOTHER)


def names_a_reference(name: str) -> bool:
    """Whether rows counted under this name were learnt by their references."""
    return name.startswith(_REFERENCE)


def counted(names: Iterable[str]) -> Counter[str]:
    """How often each name of ``COUNTED`` occurs; others are ``another``."""
    return Counter(name if name in COUNTED else ANOTHER for name in names)
