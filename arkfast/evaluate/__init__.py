"""Evaluation: scores of transcripts, with everything that was not scored in sight."""

from arkfast.evaluate.scores import Scores, evaluate_rows, score_rows

__all__ = ["Scores", "evaluate_rows", "score_rows"]
