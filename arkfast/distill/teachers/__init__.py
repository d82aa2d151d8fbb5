"""Teachers: whoever can score the student's own tokens."""

from arkfast.distill.teachers.arkasr import ArkasrTeacher
from arkfast.distill.teachers.base import Teacher

__all__ = ["ArkasrTeacher", "Teacher"]
