"""Lets the tests of evaluation share ``evaluation_pages``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
