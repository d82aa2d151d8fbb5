"""From manifests to batches: rows, features, order."""

from arkfast.data.cache import FeatureCache
from arkfast.data.collate import collate, extract, pad_right
from arkfast.data.loader import Batches, Loader, planned_seconds, row_seconds
from arkfast.data.manifest import Fields, count_rows, iter_manifest, read_manifest
from arkfast.data.order import DataOrder
from arkfast.data.pipeline import BadAudioPolicy, FeatureItem, FeaturePipeline

__all__ = [
    "BadAudioPolicy",
    "Batches",
    "DataOrder",
    "FeatureCache",
    "FeatureItem",
    "FeaturePipeline",
    "Fields",
    "Loader",
    "collate",
    "count_rows",
    "extract",
    "iter_manifest",
    "pad_right",
    "planned_seconds",
    "read_manifest",
    "row_seconds",
]
