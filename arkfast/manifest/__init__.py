"""``arkfast manifest``: what a data set holds, before a run finds out. No model is loaded for it."""

from arkfast.manifest.check import CheckOptions, Finding, check_rows
from arkfast.manifest.durations import DurationCache
from arkfast.manifest.scan import check_manifest, scan_manifest
from arkfast.manifest.summary import Summary

__all__ = ["CheckOptions", "DurationCache", "Finding", "Summary", "check_manifest", "check_rows", "scan_manifest"]
