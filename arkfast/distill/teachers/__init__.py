"""Teachers: whoever can score the student's own tokens."""

from arkfast.distill.teachers.base import Teacher
from arkfast.distill.teachers.arkasr import ArkasrTeacher

__all__ = ["ArkasrTeacher", "Teacher"]
