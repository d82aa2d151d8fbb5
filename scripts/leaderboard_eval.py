"""``python scripts/leaderboard_eval.py …``: one data set's result file for the Open ASR Leaderboard."""

import sys

from arkfast.evaluate.leaderboard import main

if __name__ == "__main__":
    sys.exit(main())
