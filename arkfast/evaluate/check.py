"""What can be told of an evaluation before a model is loaded: that the normaliser is there, and that the rows can be scored afterwards."""

from __future__ import annotations

from arkfast.data import iter_manifest
from arkfast.data.ids import UniqueIds
from arkfast.evaluate.options import EvaluateConfig
from arkfast.evaluate.rows import read_item
from arkfast.infer.result import Result
from arkfast.metrics import Normalizer, get_normalizer
from arkfast.records import InputError


def load_normalizer(config: EvaluateConfig) -> Normalizer:
    """The normaliser that the flags ask for; to be closed.

    Raises:
        InputError: it cannot be had.
    """
    return get_normalizer(
        config.normalizer_name,
        python=config.text_normalize_python,
        workdir=config.text_normalize_workdir,
        leaderboard_path=config.leaderboard_path,
        options=config.normalizer_options,
        filler_words=config.filler_words,
    )


def check_manifest(config: EvaluateConfig, normalizer: Normalizer) -> None:
    """See that a manifest's rows, once transcribed, can be scored as the flags ask. Reads it once, in constant memory.

    Bad rows are passed over: they become failed rows, which need neither a field to resample by nor rules for their language.

    Raises:
        InputError: the manifest cannot be read, no row has a reference, an id stands there twice, a row lacks the field of
            ``--group_by``, or the normaliser has no rules for a row's language.
    """
    bad: list[int] = []
    languages: dict[str | None, str] = {}
    rows, referenced = 0, False
    with UniqueIds(allow_repeats=config.allow_repeats) as ids:
        for utterance in iter_manifest(config.input, fields=config.row_fields, on_error=lambda error, number, line: bad.append(number)):
            row = Result(utterance=utterance, text_raw="").row()
            try:
                item = read_item(row, utterance.where, config.fields)
                ids.keep(utterance.id, utterance.where, row)
            except InputError as error:
                raise InputError(f"{error}; nothing was transcribed") from error
            rows += 1
            referenced |= item.reference is not None
            languages.setdefault(item.language, utterance.where)
    if rows and not referenced and not bad:
        raise InputError(
            f"{config.input}: no row has a reference in field '{config.text_field}'; name the reference's field with --text_field"
        )
    for language, where in languages.items():
        try:
            normalizer.apply([""], [language])
        except InputError as error:
            raise InputError(f"{where}: {error}; nothing was transcribed") from error
