"""The tuner of the kernels' tables where there is no GPU: which tables, which candidates, how it searches, what it writes."""

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from arkfast.kernels.common import launch
from arkfast.kernels.common.launch import Config, Rule, pick

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tuner():
    spec = importlib.util.spec_from_file_location("tune_kernels", ROOT / "scripts" / "tune_kernels.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_every_static_table_is_tuned_at_shapes_that_its_suite_has(tuner):
    found = set()
    for path in (ROOT / "kernels").rglob("*.py"):
        for name in re.findall(r"^(\w+) = \(\s*(?:#.*\s*)*Rule\(", path.read_text(), flags=re.MULTILINE):
            found.add((str(path.relative_to(ROOT / "kernels").with_suffix("")).replace("/", "."), name))
    assert len(found) >= 12
    assert found == {(table.module, table.name) for table in tuner.TABLES}
    for table in tuner.TABLES:
        assert all(isinstance(rule, Rule) for rule in getattr(table.loaded(), table.name))
        shapes = table.shapes("cuda")
        assert len({shape.H for shape in shapes}) == len(shapes) > 0
        assert len({shape.T for shape in shapes}) == 1
        assert table.path.exists()


def test_candidates_are_one_step_away_and_within_bounds(tuner):
    config = Config(num_warps=1, num_stages=4, blocks={"A": 4, "B": 64})
    found = list(tuner.candidates(config))
    assert Config(num_warps=2, num_stages=4, blocks={"A": 4, "B": 64}) in found
    assert {(c.num_warps, c.num_stages, c.blocks["A"], c.blocks["B"]) for c in found} == {
        (2, 4, 4, 64), (1, 3, 4, 64), (1, 4, 8, 64), (1, 4, 4, 32), (1, 4, 4, 128),
    }  # fmt: skip


def test_the_search_goes_on_while_something_is_better_and_stops_with_the_time(tuner):
    def ratio(now, other):
        # Best at 16 warps; two stages cannot be built; a larger block is faster at one shape and slower at the other.
        if other.num_stages != 1:
            return None
        if other.blocks != now.blocks:
            return [0.5, 1.2]
        return [cost(other) / cost(now)] * 2

    def cost(config):
        return 10.0 + abs(config.num_warps - 16)

    start = Config(num_warps=4, num_stages=1, blocks={"A": 64})
    assert tuner.search(start, ratio, lambda: False) == Config(num_warps=16, num_stages=1, blocks={"A": 64})
    assert tuner.search(start, ratio, lambda: True) == start
    turns = iter([False, False, True])
    assert tuner.search(start, ratio, lambda: next(turns, True)) == Config(num_warps=8, num_stages=1, blocks={"A": 64})


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("last", [False, True])
def test_a_written_table_holds_the_new_rule_and_all_else_as_it_was(tuner, monkeypatch, number, last):
    table = tuner.TABLES[number]
    rules = getattr(table.loaded(), table.name)
    index = len(rules) - 1 if last else 0
    new = next(tuner.candidates(rules[index].config))
    for arch in {90, rules[index].min_arch or 90}:
        wanted = tuner.with_rule(rules, index, new, arch)
        source = table.path.read_text()
        rule = wanted[index]
        written = tuner.rewritten(source, table.name, index, rule, rules[index].min_arch == arch)
        (assigned,) = (
            node for node in ast.parse(written).body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table.name
        )
        assert eval(ast.unparse(assigned.value), {"Config": Config, "Rule": Rule}) == wanted
        assert len(wanted) - len(rules) == (rules[index].min_arch != arch)
        outside = [line for line in written.splitlines() if line not in source.splitlines()]
        gone = [line for line in source.splitlines() if line not in written.splitlines()]
        one_line = re.search(rf"^{table.name} = \(.*\)$", source, flags=re.MULTILINE)
        assert len(outside) == (1 if one_line is None else 2 + len(rules) + ("\n)\n" not in source))
        assert len(gone) == (rules[index].min_arch == arch or one_line is not None)
        assert max(map(len, outside)) <= 140
        # An older GPU finds what it found before.
        monkeypatch.setattr(launch, "compile_for", arch - 10)
        for width in (64, 896, 2048):
            for dtype in (torch.bfloat16, torch.float32):
                case = {"device": torch.device("cuda"), "width": width, "dtype": dtype}
                assert rules[index].min_arch == arch or pick(wanted, **case) == pick(rules, **case)


def test_every_field_of_a_configuration_is_written(tuner):
    config = Config(num_warps=8, num_stages=1, blocks={"TILE": 64}, most_registers=64)
    assert all(value != getattr(Config(), name) for name, value in vars(config).items())
    assert eval(tuner.in_words(config), {"Config": Config}) == config


def test_a_dry_run_names_tables_and_candidates_and_without_a_gpu_nothing_is_tuned(tuner, monkeypatch, capsys, cpu):
    before = [table.path.stat().st_mtime_ns for table in tuner.TABLES]
    monkeypatch.setattr(sys, "argv", ["tune_kernels", "--dry_run"])
    assert tuner.main() == 0
    said = capsys.readouterr().out
    assert all(f"{table.module}.{table.name}, timed by {table.group} at " in said for table in tuner.TABLES)
    assert "rule 0, Config(num_warps=4, num_stages=1): 3 candidates" in said
    assert [table.path.stat().st_mtime_ns for table in tuner.TABLES] == before
    monkeypatch.setattr(sys, "argv", ["tune_kernels"])
    with pytest.raises(SystemExit):
        tuner.main()
    assert "nothing to tune on a CPU" in capsys.readouterr().err
