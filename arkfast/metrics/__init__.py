"""Text normalisation and error counting; knows no models, rows or files."""

from arkfast.metrics.errors import UNITS, ErrorCounts, Unit, bootstrap_difference, char_errors, count_errors, word_errors
from arkfast.metrics.normalize import NORMALIZERS, get_normalizer, normalize

__all__ = [
    "NORMALIZERS",
    "UNITS",
    "ErrorCounts",
    "Unit",
    "bootstrap_difference",
    "char_errors",
    "count_errors",
    "get_normalizer",
    "normalize",
    "word_errors",
]
