"""open-audio-opd's path of ``scripts/train.py``."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "train.py"), run_name=__name__)
