"""Text normalisation, languages and error counts of texts."""

from arkfast.metrics.alignment import Pair, align
from arkfast.metrics.errors import ErrorCounts, char_errors, count_errors, resampled_rates, word_errors
from arkfast.metrics.languages import (
    ARK_LANGUAGES,
    UNITS,
    Unit,
    canonical,
    is_known,
    near,
    tokenize,
    unit_of,
    unit_of_script,
    unit_of_texts,
    without_word_spaces,
)
from arkfast.metrics.normalizers import NORMALIZERS, Normalizer, NormalizerName, NormalizerOption, get_normalizer, label, normalize
from arkfast.metrics.paired import Difference, bootstrap_difference, paired_test, unpaired_difference
from arkfast.metrics.resampling import CONFIDENCE, RESAMPLES

__all__ = [
    "ARK_LANGUAGES",
    "CONFIDENCE",
    "NORMALIZERS",
    "RESAMPLES",
    "UNITS",
    "Difference",
    "ErrorCounts",
    "Normalizer",
    "NormalizerName",
    "NormalizerOption",
    "Pair",
    "Unit",
    "align",
    "bootstrap_difference",
    "canonical",
    "char_errors",
    "count_errors",
    "get_normalizer",
    "is_known",
    "label",
    "near",
    "normalize",
    "paired_test",
    "resampled_rates",
    "tokenize",
    "unit_of",
    "unit_of_script",
    "unit_of_texts",
    "unpaired_difference",
    "without_word_spaces",
    "word_errors",
]
