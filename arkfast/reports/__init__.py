"""The one room in which HTML pages are made: templates that escape whatever they are given, one stylesheet, one notation for errors.

Evaluation, training, the quickstart and ``arkfast prove`` say what stands on their pages; how it looks is decided here.
"""

from arkfast.reports.figures import dated, duration, interval, percent, points, times
from arkfast.reports.rendering import render
from arkfast.reports.tables import Cell, Column, Row, Table
from arkfast.reports.transcripts import Run, runs

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Run",
    "Table",
    "dated",
    "duration",
    "interval",
    "percent",
    "points",
    "render",
    "runs",
    "times",
]
