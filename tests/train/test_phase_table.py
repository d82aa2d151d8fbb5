"""The phases of a step: one table that the code, the log, the bar and the page read, and that knows every phase that is timed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import arkfast
from arkfast.train.logging import phase_table
from arkfast.train.logging.phase_table import PHASES, STEP, Phase, parts_of, phase_named

PACKAGE = Path(arkfast.__file__).parent
CLOCKS = ("phase", "phases", "_phases")
"""What the clocks of a step are called where they are used."""


def timed(source: str) -> Iterator[str]:
    """The names that a module times something under."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr == "add" and isinstance(called.value, (ast.Name, ast.Attribute)):
            called = called.value  # seconds that no block encloses: phases.add("data_wait", seconds)
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else None
        if name in CLOCKS:
            (argument,) = node.args[:1]
            assert isinstance(argument, ast.Constant), f"line {node.lineno}: a phase has its name written out"
            yield str(argument.value)


def test_every_phase_that_is_timed_stands_in_the_table_and_the_other_way_round():
    found = {name for part in ("distill", "train") for path in (PACKAGE / part).rglob("*.py") for name in timed(path.read_text())}
    assert found == {phase.name for phase in PHASES}


def test_what_is_timed_is_found():
    source = "with phase('a'), self._phases('b'):\n    self._phases.add('c', 1.0)\n    phases('d')\n    other('e')\n    names.add('f')"
    assert sorted(timed(source)) == ["a", "b", "c", "d"]
    with pytest.raises(AssertionError, match="a phase has its name written out"):
        list(timed("phase(name)"))


def test_no_other_module_spells_a_phases_name_in_the_log():
    logged = {phase.logged for phase in PHASES if phase is not STEP}
    spelt = {
        (path.name, node.value)
        for path in PACKAGE.rglob("*.py")
        if path.name != "phase_table.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in logged
    }
    assert spelt == set()


def test_the_names_of_the_log_are_those_that_readers_know():
    assert {phase.name: phase.logged for phase in PHASES} == {
        "step": "time_per_step",
        "data_wait": "data_wait_max",
        "move_batch": "move_batch_max",
        "encode": "encode_time_max",
        "rollout": "rollout_time_max",
        "teacher": "teacher_time_max",
        "student_score": "student_score_time_max",
        "backward": "backward_max",
        "optimizer": "optimizer_max",
    }


def test_the_table_is_a_tree_without_repetitions():
    assert [phase for phase in PHASES if phase.part_of is None] == [STEP]
    for phase_of_table in PHASES[1:]:
        assert phase_of_table.part_of is not None
        assert phase_named(phase_of_table.part_of) in PHASES[: PHASES.index(phase_of_table)], "what holds it comes first"
    for field in ("name", "logged", "label"):
        assert len({getattr(phase_of_table, field) for phase_of_table in PHASES}) == len(PHASES)


def test_a_part_of_a_part_counts_once(monkeypatch):
    inner = Phase("teacher_encode", "teacher_encode_max", "teacher's encoder", None, "teacher")
    monkeypatch.setattr(phase_table, "PHASES", (*PHASES, inner))
    assert parts_of("step") == PHASES[1:]
    assert parts_of("teacher") == (inner,)
