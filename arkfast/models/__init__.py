"""The models, native to Transformers 5. Importing this registers them with its Auto classes and its speech-recognition pipeline."""

from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.processing import ArkasrProcessor
from arkfast.models.arkasr.register import register
from arkfast.models.family import find_family, load_model

register()

__all__ = ["ArkasrConfig", "ArkasrForConditionalGeneration", "ArkasrProcessor", "find_family", "load_model"]
