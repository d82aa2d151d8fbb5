"""Flags from dataclasses: both spellings, YAML beneath flags, and a clear line for every wrong one."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from arkfast.command_line import field_docs, parse, to_dict


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
