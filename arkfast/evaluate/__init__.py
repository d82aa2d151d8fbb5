"""Evaluation: scores of transcripts, with everything that was not scored in sight."""

from arkfast.evaluate.rows import Fields
from arkfast.evaluate.scores import Scores
from arkfast.evaluate.scoring import evaluate_rows, score_rows

__all__ = ["Fields", "Scores", "evaluate_rows", "score_rows"]
