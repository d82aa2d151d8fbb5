"""Making ARK-ASR known to Transformers' Auto classes and to its speech-recognition pipeline.

A class registered here wins over the code that a checkpoint brings, even with ``trust_remote_code=True``.
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from arkfast.models.arkasr.config import ArkasrConfig
from arkfast.models.arkasr.modeling import ArkasrForConditionalGeneration
from arkfast.models.arkasr.pipeline import ArkasrPipeline
from arkfast.models.arkasr.processing import ArkasrProcessor

TASK = "automatic-speech-recognition"


def register() -> None:
    """Register every class. Doing so again changes nothing."""
    AutoConfig.register(ArkasrConfig.model_type, ArkasrConfig, exist_ok=True)
    AutoModelForCausalLM.register(ArkasrConfig, ArkasrForConditionalGeneration, exist_ok=True)
    AutoModelForSpeechSeq2Seq.register(ArkasrConfig, ArkasrForConditionalGeneration, exist_ok=True)
    AutoTokenizer.register(ArkasrConfig, fast_tokenizer_class=Qwen2Tokenizer, exist_ok=True)
    AutoFeatureExtractor.register(ArkasrConfig, WhisperFeatureExtractor, exist_ok=True)
    AutoProcessor.register(ArkasrConfig, ArkasrProcessor, exist_ok=True)
    # The task keeps its own model classes and default; only the pipeline class changes, and it passes other models through.
    PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] = ArkasrPipeline
