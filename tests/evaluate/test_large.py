"""A corpus of 200,000 rows through the command: every row counted, time and memory printed and bounded.

A minute and 2 GB are what a user is promised. The bound on time is twice that and of the processor, so that a busy machine does not decide.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROWS = 200_000


@pytest.mark.slow
def test_two_hundred_thousand_rows(tmp_path: Path) -> None:
    """Rows of 8 to 24 units in English and Chinese; of each ten, two have one unit replaced, two have lost one, two are too long by one."""
    draw = random.Random(1)
    english = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(5000)]
    chinese = [chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(3000)]
    units, source = 0, tmp_path / "in.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for i in range(ROWS):
            language = "zh" if i % 4 == 3 else "en"
            words = draw.choices(chinese if language == "zh" else english, k=draw.randint(8, 24))
            joiner = "" if language == "zh" else " "
            heard = list(words)
            if i % 10 < 2:
                heard[3] = "q"
            elif i % 10 < 4:
                del heard[5]
            elif i % 10 < 6:
                heard.append("q")
            units += len(words)
            row = {"id": str(i), "language": language, "text": joiner.join(words).capitalize() + ".", "pred_text": joiner.join(heard)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    output, summary = tmp_path / "out.jsonl", tmp_path / "summary.json"
    command = [sys.executable, "-m", "arkfast.cli", "evaluate", "--input", str(source), "--output", str(output), "--summary", str(summary)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)  # this child's use alone
    seconds = time.perf_counter() - started
    assert status == 0
    peak = used.ru_maxrss / 2**20
    cpu = used.ru_utime + used.ru_stime
    print(f"{ROWS} rows scored in {seconds:.1f} s ({cpu:.1f} s of one core), peak memory {peak:.2f} GiB")
    found = json.loads(summary.read_text())
    assert (found["utterances"], found["scored"], found["reference_units"]) == (ROWS, ROWS, units)
    assert (found["substitutions"], found["deletions"], found["insertions"]) == (ROWS // 5,) * 3
    assert found["rate_low"] < found["rate"] == 3 * (ROWS // 5) / units < found["rate_high"]
    with output.open(encoding="utf-8") as file:
        assert sum(json.loads(line)["errors"] for line in file) == 3 * (ROWS // 5)
    assert cpu < 120, "time must grow with the rows, not with their square"
    assert peak < 2, "the corpus must not be held many times over"
