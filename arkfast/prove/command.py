"""``arkfast prove``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from arkfast.command_line import parse
from arkfast.prove.config import ProveConfig

DESCRIPTION = (
    "Compare this library with Transformers and with the original's loss on your checkpoints, train a few steps with WER before and after, "
    "and write one pass or fail report."
)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns 0 where no comparison failed, else 1."""
    config = parse(ProveConfig, argv, prog="arkfast prove", description=DESCRIPTION)
    from arkfast.models.bars import without_loading_bars
    from arkfast.prove.report import table, write
    from arkfast.prove.run import prove
    from arkfast.train.stop import Interrupted

    without_loading_bars()
    try:
        report = prove(config)
    except Interrupted as reason:
        print(f"arkfast prove: {reason}", file=sys.stderr)
        return reason.exit_code
    write(report, config.output_dir)
    print(table(report))
    print(f"report: {config.output_dir / 'report.html'}")
    return 0 if report.passed else 1
