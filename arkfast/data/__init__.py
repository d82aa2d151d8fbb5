"""From manifests to batches: rows, prompts, features, order."""

from arkfast.data.cache import FeatureCache
from arkfast.data.collate import collate, extract, target_ids
from arkfast.data.loader import DataOrder, Loader, row_seconds
from arkfast.data.manifest import Fields, iter_manifest, read_manifest
from arkfast.data.prompt import Prompt, audio_token_count

__all__ = [
    "DataOrder",
    "FeatureCache",
    "Fields",
    "Loader",
    "Prompt",
    "audio_token_count",
    "collate",
    "extract",
    "iter_manifest",
    "read_manifest",
    "row_seconds",
    "target_ids",
]
