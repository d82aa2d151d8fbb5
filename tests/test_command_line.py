"""Flags from dataclasses: both spellings, YAML beneath flags, and a clear line for every wrong one."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from arkfast.command_line import (
    DATA,
    DECODING,
    FIRST,
    HEADINGS,
    MACHINE,
    MODEL,
    OTHERS,
    OUTPUT,
    WITHOUT_EFFECT,
    field_docs,
    groups,
    parse,
    to_dict,
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """Settings of a test."""

    input: Path
    """Where to read from,
    over two lines."""
    top_k: int = 32
    """How many."""
    rate: float = 1e-6
    """How fast."""
    shuffle: bool = True
    """Whether."""
    mode: Literal["fast", "slow"] = "fast"
    """Which."""
    name: str | None = None
    """Who."""
    sizes: tuple[int, ...] = (1, 2)
    """How large."""
    loud: bool = False
    """Whether it is heard."""
    certain: bool | None = None
    """Whether, where that is known."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"--top_k: must be at least 1, got {self.top_k}")


def read(*argv: str) -> Example:
    return parse(Example, argv, prog="test", description="A test.")


def test_defaults_types_and_both_spellings():
    config = read("--input", "a.jsonl", "--top-k", "8", "--shuffle=False", "--rate", "2e-5", "--name", "x", "--sizes", "3,4,5")
    assert config == Example(input=Path("a.jsonl"), top_k=8, shuffle=False, rate=2e-5, name="x", sizes=(3, 4, 5))
    assert read("--input", "a", "--top_k", "8").top_k == 8
    assert read("--input", "a", "--name", "none").name is None


def test_a_boolean_flag_stands_alone_or_with_a_value():
    assert read("--input", "a", "--loud").loud is True
    assert read("--loud", "--input", "a", "--top_k", "4") == Example(input=Path("a"), top_k=4, loud=True)
    assert read("--input", "a", "--loud", "false", "--shuffle").loud is False
    assert read("--input", "a", "--loud=yes", "--loud", "no").loud is False  # the last one holds
    assert [read("--input", "a", *flags).certain for flags in ((), ("--certain",), ("--certain", "none"))] == [None, True, None]


def test_no_other_flag_stands_alone(capsys):
    for flag in ("--top_k", "--name", "--mode", "--sizes"):
        with pytest.raises(SystemExit) as stopped:
            read("--input", "a", flag)
        assert stopped.value.code == 2
        assert f"argument {flag}: expected one argument" in capsys.readouterr().err


def test_a_bare_flag_wins_over_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("input: a\nloud: false\n")
    assert read("--config", str(file)).loud is False
    assert read("--config", str(file), "--loud").loud is True


def test_flags_win_over_yaml_over_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("input: from-yaml\ntop-k: 4\nrate: 1.0e-4\nsizes: [7]\n")
    config = read("--config", str(file), "--top_k", "5")
    assert config == Example(input=Path("from-yaml"), top_k=5, rate=1e-4, sizes=(7,))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--input", "a", "--top_kk", "3"), "unknown flag --top_kk; did you mean top_k?"),
        (("--input", "a", "--zzz", "3"), "unknown flag --zzz; --help lists what there is"),
        (("--input", "a", "stray"), "unexpected argument 'stray'"),
        (("--input", "a", "--top_k", "many"), "--top_k: expected int, got 'many'"),
        (("--input", "a", "--top_k", str(1 << 63)), "--top_k: expected a whole number of 64 bits at most, got '9223372036854775808'"),
        (("--input", "a", "--rate", "inf"), "--rate: expected a finite number, got 'inf'"),
        (("--input", "a", "--rate", "nan"), "--rate: expected a finite number, got 'nan'"),
        (("--input", "a", "--rate", "1e999"), "--rate: expected a finite number, got '1e999'"),
        (("--input", "a", "--top_k", "0"), "--top_k: must be at least 1, got 0"),
        (("--input", "a", "--shuffle", "perhaps"), "--shuffle: expected True or False, got 'perhaps'"),
        (("--input", "a", "--shuffle", "true", "stray"), "unexpected argument 'stray'"),
        (("--input", "a", "--mode", "medium"), "--mode: expected one of fast, slow, got 'medium'"),
        (("--top_k", "3"), "required: --input"),
        (("--config", "absent.yaml"), "--config absent.yaml: cannot be read"),
    ],
)
def test_wrong_flags_are_named(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        read(*argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--lr", "learning_rate"),
        ("--wd", "weight_decay"),
        ("--epochs", "total_epochs"),
        ("--batch_size", "per_device_train_batch_size"),
        ("--learning_rat", "learning_rate"),
        ("--teacher", "teacher_model"),
    ],
)
def test_short_names_of_flags_are_understood(flag, meant, capsys):
    from arkfast.train.config import TrainConfig

    with pytest.raises(SystemExit):
        parse(TrainConfig, [flag, "1"], prog="p", description="")
    said = capsys.readouterr().err
    assert f"unknown flag {flag}; did you mean " in said
    assert meant in said.split("did you mean ")[1].rstrip("?\n").split(" or ")


def test_wrong_yaml_is_named(tmp_path, capsys):
    for text, message in (
        ("inptu: a\n", "unknown key 'inptu'; did you mean input?"),
        ("- a\n", "expected a mapping"),
        ("a: [\n", "not valid YAML"),
    ):
        file = tmp_path / "run.yaml"
        file.write_text(text)
        with pytest.raises(SystemExit):
            read("--config", str(file))
        assert f"--config {file}: " in (err := capsys.readouterr().err)
        assert message in err


def test_help_has_each_fields_sentence(capsys):
    with pytest.raises(SystemExit) as stopped:
        read("--help")
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for sentence in field_docs(Example).values():
        assert sentence in shown
    assert field_docs(Example)["input"] == "Where to read from, over two lines."


def attributes(tree: ast.AST) -> set[str]:
    """Names read as attributes, those that a configuration's own checks read left out."""
    found = {tree.attr} if isinstance(tree, ast.Attribute) else set()
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.FunctionDef) and child.name == "__post_init__"):
            found |= attributes(child)
    return found


def test_every_flag_of_the_product_has_a_sentence_and_is_read():
    """A flag that no code reads would be accepted and do nothing."""
    from dataclasses import fields
    from importlib import import_module

    root = Path(__file__).resolve().parents[1] / "arkfast"
    for module, name, readers in (
        ("arkfast.train.config", "TrainConfig", ("train",)),
        ("arkfast.quickstart.config", "QuickstartConfig", ("quickstart",)),
        ("arkfast.prove.config", "ProveConfig", ("prove",)),
        ("arkfast.infer.command", "TranscribeConfig", ("infer", "cli")),
        ("arkfast.evaluate.command", "EvaluateConfig", ("evaluate", "infer")),
    ):
        cls = getattr(import_module(module), name)
        docs = field_docs(cls)
        read = set()
        for package in readers:
            for path in [*(root / package).rglob("*.py"), root / f"{package}.py"]:
                if path.is_file() and path.name != "config.py":
                    read |= attributes(ast.parse(path.read_text(encoding="utf-8")))
        for field in fields(cls):
            assert docs.get(field.name, "").endswith("."), f"{name}.{field.name} has no sentence"
            assert field.name in read, f"{name}.{field.name} is read nowhere"


def test_to_dict_is_json():
    assert to_dict(Example(input=Path("a"))) == {
        "input": "a", "top_k": 32, "rate": 1e-6, "shuffle": True, "mode": "fast", "name": None, "sizes": [1, 2],
        "loud": False, "certain": None,
    }  # fmt: skip


COMMANDS = {
    "train": ("arkfast.train.config", "TrainConfig"), "quickstart": ("arkfast.quickstart.config", "QuickstartConfig"),
    "prove": ("arkfast.prove.config", "ProveConfig"), "transcribe": ("arkfast.infer.command", "TranscribeConfig"),
    "evaluate": ("arkfast.evaluate.options", "EvaluateConfig"), "leaderboard": ("arkfast.evaluate.leaderboard", "LeaderboardConfig"),
    "verify": ("arkfast.train.verify", "VerifyConfig"), "report": ("arkfast.train.report.command", "ReportConfig"),
    "export": ("arkfast.train.checkpoints.export_command", "ExportConfig"), "check": ("arkfast.manifest.command", "CheckConfig"),
    "scan": ("arkfast.manifest.command", "ScanConfig"), "from-": ("arkfast.manifest.corpora.command", "CorpusConfig"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_of_every_command_stands_under_a_heading_that_says_something(command):
    from dataclasses import MISSING, fields
    from importlib import import_module

    module, name = COMMANDS[command]
    cls = getattr(import_module(module), name)
    found = groups(cls)
    assert sorted(flag for flags in found.values() for flag in flags) == sorted(field.name for field in fields(cls))
    assert OTHERS not in found
    required = {field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING}
    assert required <= set(found.get(FIRST, []))
    assert [heading for heading in HEADINGS if heading in found] == list(found)
    for base in cls.__mro__:
        first = set(base.__dict__.get("headings", {}))
        assert first <= {field.name for field in fields(cls)}, "a heading over a field that is not there"
    idle = set(found.get(WITHOUT_EFFECT, []))
    docs = field_docs(cls)
    assert {flag for flag in docs if "without effect" in docs[flag]} <= idle


def helped(*argv, **options):
    with pytest.raises(SystemExit) as stopped:
        parse(options.pop("cls", Example), [*argv, "--help"], prog="test", description="A test.", **options)
    assert stopped.value.code == 0


def test_help_says_first_what_to_give_and_each_default_once(capsys, monkeypatch):
    from arkfast.infer.command import TranscribeConfig

    monkeypatch.setenv("COLUMNS", "140")
    helped(cls=TranscribeConfig, position="input", further="more_inputs")
    shown = capsys.readouterr().out
    assert shown.startswith("usage: test INPUT [INPUT ...] [--flag value ...]\n")
    order = [f"\n{heading}:\n" for heading in (FIRST, MODEL, DATA, DECODING, OUTPUT, MACHINE, WITHOUT_EFFECT)]
    assert [shown.find(heading) for heading in order] == sorted(shown.find(heading) for heading in order)
    assert -1 not in [shown.find(heading) for heading in order]
    first = shown[shown.index(order[0]) : shown.index(order[1])]
    assert all(f"--{name}" in first for name in ("input", "output", "model_path"))
    assert "--padding_side" in shown[shown.index(order[-1]) :]
    assert "One of" not in shown
    entries = " ".join(shown.split()).split(" --")
    assert not [entry for entry in entries if "Default: " in entry and ("by default" in entry or entry.count("Default: ") > 1)]


def test_a_list_of_choices_and_a_default_of_several_are_shown_as_they_are_typed(capsys):
    helped()
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: test --input PATH [--flag value ...] A test.")
    assert "--mode {fast,slow} Which. Default: fast." in shown
    assert "--sizes INT,... How large. Default: 1,2." in shown
    assert "Where to read from, over two lines. Required." in shown


def test_original_flags_that_train_takes_stand_last(capsys):
    from arkfast.train.command import main
    from arkfast.train.originals import WITHOUT_EFFECT as IDLE

    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    last = shown[shown.index(f"\n{WITHOUT_EFFECT}:\n") :]
    assert all(f"--{name}" in last for name in IDLE)


@dataclass(frozen=True, kw_only=True)
class Several(Example):
    """Settings with more than one input."""

    more: tuple[Path, ...] = ()
    """Where else to read from."""


def test_further_inputs_stand_behind_the_first(capsys):
    def placed(*argv):
        return parse(Several, argv, prog="test", description="A test.", position="input", further="more")

    assert (placed("a").input, placed("a").more) == (Path("a"), ())
    found = placed("a", "--top_k", "4", "b,c", "--loud", "d")
    assert (found.input, found.more, found.top_k, found.loud) == (Path("a"), (Path("b,c"), Path("d")), 4, True)
    assert placed("a", "--more", "b,c").more == (Path("b"), Path("c"))
    assert to_dict(found)["more"] == ["b,c", "d"]
    for argv, message in (
        (("a", "b", "--more", "c"), "unexpected argument 'b'"),
        (("--input", "a", "b"), "unexpected argument 'b': --input is given too"),
        (("a", "b", "-x"), "unknown flag -x"),
    ):
        with pytest.raises(SystemExit):
            placed(*argv)
        assert message in capsys.readouterr().err


def test_one_input_may_stand_without_its_flag(capsys):
    def placed(*argv):
        return parse(Example, argv, prog="test", description="A test.", position="input")

    assert placed("a.jsonl") == placed("--input", "a.jsonl") == Example(input=Path("a.jsonl"))
    for argv in (("--top_k", "4", "a"), ("a", "--top_k", "4"), ("--loud", "a", "--top-k=4"), ("--top_k", "4", "--loud", "a")):
        assert (placed(*argv).input, placed(*argv).top_k) == (Path("a"), 4), argv
    assert placed("--loud", "a").loud is True
    assert placed("--loud", "false", "a").loud is False
    assert placed("-").input == Path("-")
    for argv, message in (
        (("a", "b"), "unexpected argument 'b'"),
        (("a", "--input", "b"), "unexpected argument 'a': --input is given too"),
        ((), "required: --input"),
        (("a", "-x"), "unknown flag -x"),
    ):
        with pytest.raises(SystemExit):
            placed(*argv)
        assert message in capsys.readouterr().err


def test_a_file_of_flags_gives_way_to_the_position(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("input: from-yaml\ntop_k: 7\n")
    config = parse(Example, ["--config", str(file), "here"], prog="test", description="A test.", position="input")
    assert (config.input, config.top_k) == (Path("here"), 7)
