"""From manifests to batches: rows, prompts, features, order."""

from arkfast.data.cache import FeatureCache
from arkfast.data.collate import collate, extract, target_ids
from arkfast.data.loader import Batches, Loader, planned_seconds, row_seconds
from arkfast.data.manifest import Fields, count_rows, iter_manifest, read_manifest
from arkfast.data.order import DataOrder
from arkfast.data.pipeline import BadAudioPolicy, FeatureItem, FeaturePipeline
from arkfast.data.prompt import Prompt, audio_token_count

__all__ = [
    "BadAudioPolicy",
    "Batches",
    "DataOrder",
    "FeatureCache",
    "FeatureItem",
    "FeaturePipeline",
    "Fields",
    "Loader",
    "Prompt",
    "audio_token_count",
    "collate",
    "count_rows",
    "extract",
    "iter_manifest",
    "planned_seconds",
    "read_manifest",
    "row_seconds",
    "target_ids",
]
