"""Lets the tests of distillation share ``distill_batches``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
