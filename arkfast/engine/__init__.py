"""The decoding engine: one for rollouts, transcription and the service."""

from arkfast.engine.engine import Decodes, Engine, RolloutOptions
from arkfast.engine.guards import token_limit
from arkfast.engine.phrases import Phrases
from arkfast.engine.request import Finished, FinishReason, Request, Sampling

__all__ = ["Decodes", "Engine", "FinishReason", "Finished", "Phrases", "Request", "RolloutOptions", "Sampling", "token_limit"]
