"""Teachers: whoever can score the student's own tokens.

A backend is a module with a function ``load(request: TeacherRequest) -> Teacher``, and with the names of the flags that not every teacher
obeys in ``OPTIONS`` where it does. One of ours is a module of this package and is named
as its file is; another is named with the packages it lies in, such as ``my_package.my_teacher``. Its module, and with it the packages that
it needs, are imported only when it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

from arkfast.distill.teachers.base import Prepare, Teacher, TeacherRequest
from arkfast.records import InputError

__all__ = ["Prepare", "Teacher", "TeacherRequest", "backends", "check_backend", "load_teacher"]

_PARTS = ("base", "direct", "hf_inputs", "hf_model", "qwen3_asr", "vocabulary")


def backends() -> list[str]:
    """Names of the backends of this package."""
    return sorted(module.name for module in iter_modules(__path__) if module.name not in _PARTS)


def check_backend(name: str) -> None:
    """Raise ``InputError`` unless there is a backend of this name; its module is not imported."""
    if name in backends():
        return
    parts = re.fullmatch(r"(\w+(?:\.\w+)*)\.\w+", name)
    try:
        found = parts is not None and find_spec(name) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise InputError(
            f"--teacher_backend {name}: there is no such backend; give {' or '.join(backends())}, or the full name of a module of your own "
            "such as my_package.my_teacher"
        )


def load_teacher(name: str, request: TeacherRequest) -> Teacher:
    """Load a backend's teacher.

    Raises:
        InputError: there is no such backend, a package that it needs is missing, its checkpoint cannot be used, or it does not fit the
            student.
    """
    check_backend(name)
    module = import_module(name if "." in name else f"{__name__}.{name}")
    load: Callable[[TeacherRequest], Teacher] | None = getattr(module, "load", None)
    if load is None:
        raise InputError(f"--teacher_backend {name}: the module has no function load(request); see arkfast/distill/teachers/base.py")
    given = {
        "teacher_prompt": request.prompt is not None,
        "teacher_full_attention": request.full_attention,
        "unsupported_language": request.unsupported_language != TeacherRequest.unsupported_language,
        "tail_bucket": request.lse_temperature is not None and not request.sampled,
        "opd_objective": request.sampled,
        "support full": request.states,
    }
    for flag, differs in given.items():
        if differs and flag not in getattr(module, "OPTIONS", ()):
            raise InputError(f"--{flag}: the teacher {name} has no such choice; leave it out, or give another --teacher_backend")
    return load(request)
