"""The models, native to Transformers 5. Importing this registers them with its Auto classes and its speech-recognition pipeline."""

from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.load import load_model
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.processing import ArkasrProcessor
from arkfast.models.arkasr.register import register

register()

__all__ = ["ArkasrConfig", "ArkasrForConditionalGeneration", "ArkasrProcessor", "load_model"]
