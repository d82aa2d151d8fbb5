"""arkfast: on-policy distillation and inference for compact speech-recognition models.

Importing this package costs neither torch nor transformers: the public names load when they are first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "LogMel": "arkfast.audio",
    "ArkasrConfig": "arkfast.models",
    "ArkasrProcessor": "arkfast.models",
    "ArkasrForConditionalGeneration": "arkfast.models",
    "Transcriber": "arkfast.infer",
    "evaluate_rows": "arkfast.evaluate",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'arkfast' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
