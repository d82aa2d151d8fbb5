"""Measures the launch configurations of the kernels' static tables on this machine's GPU and writes the better ones into the tables.

    python scripts/tune_kernels.py --minutes 3            # measures, prints, writes kernels/*/
    python scripts/tune_kernels.py --dry_run              # says which tables and candidates there are; measures and writes nothing

Nothing is tuned while arkfast runs: a table is looked up, and what this script writes is read and committed like other code. A better
configuration becomes a rule of its own for GPUs of this compute capability and newer, above the one that it was found from; older GPUs keep
theirs. A candidate counts only where its answers pass the benchmark's check, and where it is faster at all shapes together by 3 % and
slower at none by more than that.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from harness.clock import Clock, percentiles  # noqa: E402
from harness.suite import Provider, Suite, complaint, device_here, prepared  # noqa: E402
from shapes import Shape  # noqa: E402

from arkfast.files import write_text  # noqa: E402
from arkfast.kernels.common.launch import Config, Rule, architecture  # noqa: E402

GAIN = 0.03
"""The part of the time that a candidate must save, and that it may lose at no shape."""
SECONDS = 0.5
"""How long a candidate is timed beside the present configuration at one shape."""
WARPS, STAGES, LARGEST, SMALLEST = (1, 32), (1, 4), 16_384, 4
"""The fewest and the most warps and stages of a candidate, and the largest and smallest block."""
SAID_FOR = 90
"""The compute capability × 10 whose rules a dry run speaks of where there is no GPU."""


@dataclass(frozen=True)
class Table:
    """A static table and what times the kernel that it is for."""

    module: str
    """Under ``kernels``."""
    name: str
    group: str
    """The suite."""
    mode: str = ""

    @property
    def path(self) -> Path:
        return ROOT / "kernels" / f"{self.module.replace('.', '/')}.py"

    def loaded(self) -> ModuleType:
        return importlib.import_module(f"arkfast.kernels.{self.module}")

    def suite(self) -> Suite:
        found: Suite = importlib.import_module(f"bench_{self.group}").SUITE
        return found

    def shapes(self, device: str) -> list[Shape]:
        """The middle number of positions at each width, in bfloat16."""
        every = [shape for shape in self.suite().shapes(device) if shape.mode == self.mode]
        sizes = sorted({shape.T for shape in every})
        middle = sizes[len(sizes) // 2]
        at_middle = filter(lambda shape: middle == shape.T, every)
        # The first one of a width, which is a core shape.
        return list({shape.H: shape for shape in reversed(list(at_middle))}.values())


TABLES = (
    Table("row_topk.launcher", "STATS", "row_topk"),
    Table("row_topk.launcher", "SELECT", "row_topk"),
    Table("linear_topk.launcher", "RESCORE", "linear_topk"),
    Table("union_kl.launcher", "ROW_TABLE", "union_kl"),
    Table("union_kl.launcher", "SPARSE_TABLE", "union_kl"),
    Table("gather_linear.op", "TABLE", "union_kl"),
    Table("sparse_grad.op", "TABLE", "sparse_grad"),
    Table("log_softmax.op", "TABLE", "log_softmax", "rows"),
    Table("linear_kl.op", "TABLE", "linear_kl"),
    Table("embed_merge.op", "TABLE", "embed_merge", "forward"),
    Table("add_rms_norm.op", "TABLE", "decode_step", "add_rms_norm"),
    Table("decode_attention.op", "TABLE", "decode_step", "decode_attention"),
)


def candidates(config: Config) -> Iterator[Config]:
    """The configurations one step away: one of warps and blocks halved or doubled, or one stage more or less."""

    def steps(value: int, low: int, high: int) -> list[int]:
        return [other for other in (value // 2, value * 2) if low <= other <= high]

    for warps in steps(config.num_warps, *WARPS):
        yield dataclasses.replace(config, num_warps=warps)
    for stages in (config.num_stages - 1, config.num_stages + 1):
        if STAGES[0] <= stages <= STAGES[1]:
            yield dataclasses.replace(config, num_stages=stages)
    for name, size in config.blocks.items():
        for other in steps(size, SMALLEST, LARGEST):
            yield dataclasses.replace(config, blocks={**config.blocks, name: other})


def with_rule(rules: Sequence[Rule], index: int, config: Config, arch: int) -> tuple[Rule, ...]:
    """The table with a configuration for GPUs from ``arch`` on, in the place of a rule that is for just these, else above it."""
    old = rules[index]
    new = dataclasses.replace(old, config=config, min_arch=arch)
    return (*rules[:index], new, *rules[index + (old.min_arch == arch) :])


# -- the source ------------------------------------------------------------------------------------------------------------------------


def in_words(config: Config) -> str:
    """As the tables are written."""
    blocks = ", ".join(f'"{name}": {size}' for name, size in config.blocks.items())
    limit = "" if config.most_registers is None else f", most_registers={config.most_registers}"
    return f"Config(num_warps={config.num_warps}, num_stages={config.num_stages}{f', blocks={{{blocks}}}' if blocks else ''}{limit})"


def rewritten(source: str, name: str, index: int, rule: Rule, replaces: bool) -> str:
    """A module's source with a rule in the table ``name``, instead of the one at ``index`` or above it; everything else stays as it is."""
    table = next(
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name
    )
    assert isinstance(table, ast.Tuple), f"{name} is written as a tuple of rules"
    place = table.elts[index]
    assert place.end_lineno is not None
    assert place.end_col_offset is not None
    limits = "".join(
        f", {key}={value}"
        for key, value, default in (("min_arch", rule.min_arch, 0), ("max_width", rule.max_width, None), ("itemsize", rule.itemsize, None))
        if value != default
    )
    text = f"Rule(config={in_words(rule.config)}{limits})"
    lines = source.splitlines(keepends=True)
    before = "".join(lines[: place.lineno - 1]) + lines[place.lineno - 1][: place.col_offset]
    if replaces:
        return before + text + lines[place.end_lineno - 1][place.end_col_offset :] + "".join(lines[place.end_lineno :])
    if table.lineno < place.lineno:
        return before + text + ",\n    " + lines[place.lineno - 1][place.col_offset :] + "".join(lines[place.lineno :])
    # A table on one line gets a line for each rule.
    every = [ast.unparse(rule) if (said := ast.get_source_segment(source, rule)) is None else said for rule in table.elts]
    written = "".join(f"    {rule},\n" for rule in [*every[:index], text, *every[index:]])
    after = lines[table.lineno - 1][table.end_col_offset :]
    return "".join(lines[: table.lineno - 1]) + f"{name} = (\n{written}){after}" + "".join(lines[table.lineno :])


# -- measuring -------------------------------------------------------------------------------------------------------------------------


class Bench:
    """One table on this GPU: which rules its shapes use, and how a candidate compares."""

    def __init__(self, table: Table, device: torch.device) -> None:
        self.table, self.device, self.module, self.suite = table, device, table.loaded(), table.suite()
        self.rules: tuple[Rule, ...] = getattr(self.module, table.name)

    def provider(self, shape: Shape) -> Provider:
        return next(one for one in self.suite.providers(shape, self.device) if one.name == "ours/triton")

    def using(self, rules: Sequence[Rule], call: Callable[[], Any]) -> Any:
        """Runs something with another table in the module's place."""
        setattr(self.module, self.table.name, tuple(rules))
        try:
            return call()
        finally:
            setattr(self.module, self.table.name, self.rules)

    def used(self) -> dict[int, list[Shape]]:
        """Rule → the shapes that it decides."""
        found: dict[int, list[Shape]] = {}
        pick, seen = self.module.pick, set[int]()

        def recorded(table: Sequence[Rule], **case: Any) -> Config:
            config: Config = pick(table, **case)
            if table is self.rules:
                seen.update(i for i, rule in enumerate(table) if rule.config is config)
            return config

        for shape in self.table.shapes(self.device.type):
            self.module.pick = recorded  # type: ignore[attr-defined]
            try:
                self.provider(shape).run(self.suite.inputs(shape, self.device, 0))
            finally:
                self.module.pick = pick  # type: ignore[attr-defined]
            for index in seen:
                found.setdefault(index, []).append(shape)
            seen.clear()
        return found

    def compare(self, shape: Shape, now: Sequence[Rule], other: Sequence[Rule]) -> float | None:
        """A candidate's time as a part of the present one's, in turns; None where its answer is wrong or the GPU cannot run it."""
        provider, sets = self.provider(shape), prepared(self.suite, shape, self.device)
        oracle = self.suite.oracle(shape, sets[0])
        if self.using(other, lambda: complaint(provider, sets[0], oracle)) is not None:
            return None
        calls = {
            name: functools.partial(lambda index, rules: self.using(rules, lambda: provider.run(sets[index])), rules=rules)
            for name, rules in (("now", now), ("other", other))
        }
        samples = Clock(self.device, queued=self.suite.queued).interleaved(calls, len(sets), SECONDS)
        return percentiles(samples["other"])["p50"] / percentiles(samples["now"])["p50"] if len(samples) == 2 else None


def search(config: Config, ratio: Callable[[Config, Config], list[float] | None], over: Callable[[], bool]) -> Config:
    """Goes from a configuration to the best of its neighbours as long as one is better and the time is not over.

    Args:
        ratio: (present, candidate) → the candidate's times as parts of the present one's, a shape each; None where it cannot be used.
        over: whether the time is over.
    """
    tried = [config]
    while True:
        best: tuple[float, Config] | None = None
        for candidate in candidates(config):
            if over():
                break
            if candidate in tried:
                continue
            tried.append(candidate)
            times = ratio(config, candidate)
            if times is None or max(times) > 1 + GAIN:
                continue
            mean = sum(times) / len(times)
            if mean <= 1 - GAIN and (best is None or mean < best[0]):
                best = mean, candidate
        if best is None:
            return config
        print(f"    {in_words(best[1])}: {100 * (1 - best[0]):.0f} % faster", flush=True)
        config = best[1]


def tune(table: Table, device: torch.device, ends: float) -> None:
    """Measures one table until ``ends`` (of ``time.monotonic``) and writes what is better."""
    arch, bench = architecture(device), Bench(table, device)
    # From the last rule on, so that a rule that is put in moves none that is still to come.
    for index, shapes in sorted(bench.used().items(), reverse=True):
        old = bench.rules[index]

        def ratio(now: Config, other: Config, index: int = index, shapes: list[Shape] = shapes) -> list[float] | None:
            found = []
            for shape in shapes:
                one = bench.compare(shape, *(with_rule(bench.rules, index, config, arch) for config in (now, other)))
                if one is None:
                    return None
                found.append(one)
            return found

        print(f"  rule {index}, {in_words(old.config)}, at {', '.join(map(str, shapes))}", flush=True)
        best = search(old.config, ratio, lambda: time.monotonic() > ends)
        if best != old.config:
            rule = dataclasses.replace(old, config=best, min_arch=arch)
            source = table.path.read_text(encoding="utf-8")
            write_text(table.path, rewritten(source, table.name, index, rule, old.min_arch == arch))
            print(f"    written to {table.path.relative_to(ROOT)}", flush=True)


def rehearse(tables: Sequence[Table]) -> None:
    """Prints the rules that a GPU's bfloat16 inputs could use and how many candidates each has at first."""
    for table in tables:
        print(f"{table.module}.{table.name}, timed by {table.group} at {', '.join(map(str, table.shapes('cuda')))}")
        for index, rule in enumerate(getattr(table.loaded(), table.name)):
            if rule.min_arch <= SAID_FOR:
                print(f"  rule {index}, {in_words(rule.config)}: {len(list(candidates(rule.config)))} candidates")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="for all tables; a candidate that is being timed is finished")
    parser.add_argument("--only", action="append", choices=[table.module for table in TABLES], help="a module; may be given several times")
    parser.add_argument("--dry_run", action="store_true", help="say what there is to measure; measure and write nothing")
    options = parser.parse_args()
    tables = [table for table in TABLES if options.only is None or table.module in options.only]
    if options.dry_run:
        rehearse(tables)
        return 0
    device = device_here()
    if device.type != "cuda":
        parser.error("no GPU is seen, and there is nothing to tune on a CPU; --dry_run says what would be measured")
    ends = time.monotonic() + 60 * options.minutes
    for i, table in enumerate(tables):
        left = ends - time.monotonic()
        print(f"{table.module}.{table.name}", flush=True)
        if left <= 0:
            print("  not reached within the time", flush=True)
            continue
        tune(table, device, time.monotonic() + left / (len(tables) - i))
    return 0


if __name__ == "__main__":
    sys.exit(main())
