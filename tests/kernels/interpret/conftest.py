"""Tests in this folder run in Triton's interpreter, in a process started with TRITON_INTERPRET=1 (see ``test_triton_interpreter``).

Triton decides how a kernel runs where it is decorated, so a process interprets all kernels or none.
"""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
