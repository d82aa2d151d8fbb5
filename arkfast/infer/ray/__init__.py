"""Transcription over actors of Ray: the rows are handed out in chunks, and one journal here keeps whatever comes back."""

from arkfast.infer.ray.lead import OnRay
from arkfast.infer.ray.options import RayOptions

__all__ = ["OnRay", "RayOptions"]
