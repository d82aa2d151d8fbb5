"""Tasks, a module each: what a model is to do with an utterance. A module ``arkfast.data.tasks.<name>`` holds the object ``task``."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from arkfast.data.tasks.base import Errors, Task
from arkfast.records import InputError

__all__ = ["Errors", "Task", "find_task", "tasks"]


def tasks() -> list[str]:
    """Names of the tasks that there are."""
    return sorted(module.name for module in iter_modules(__path__) if module.name != "base")


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        InputError: there is none.
    """
    if name not in tasks():
        raise InputError(f"task {name!r}: there is no such task; there is {', '.join(tasks())}")
    task: Task = import_module(f"arkfast.data.tasks.{name}").task
    return task
