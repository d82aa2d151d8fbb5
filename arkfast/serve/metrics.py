"""What the service counts, for Prometheus. No label holds anything of a recording, a transcript or a key."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter("arkfast_requests", "Requests answered, by route and status.", ["route", "status"], registry=own)
        self.by_key = Counter("arkfast_key_requests", "Recordings transcribed, by the name of the key.", ["key"], registry=own)
        self.audio = Counter("arkfast_audio_seconds", "Seconds of audio transcribed, by the name of the key.", ["key"], registry=own)
        self.latency = Histogram("arkfast_request_seconds", "Time to answer, by route.", ["route"], registry=own, buckets=_SECONDS)
        self.inside = Gauge("arkfast_requests_inside", "Requests that are under way.", registry=own)
        self.waiting = Gauge("arkfast_clips_waiting", "Clips that wait for the engine.", registry=own)
        self.busy = Gauge("arkfast_clips_decoding", "Clips that the engine has.", registry=own)
        self.deaths = Gauge("arkfast_engine_deaths", "How often the engine's process died.", registry=own)
        self.crashes = Gauge("arkfast_decoder_crashes", "How often a process that reads recordings died.", registry=own)
        self.known = Gauge("arkfast_encoder_cache_hits", "Clips that were not encoded because they came before.", registry=own)
        self.unknown = Gauge("arkfast_encoder_cache_misses", "Clips that were encoded and are kept.", registry=own)
        self.ready = Gauge("arkfast_ready", "1 while the engine takes clips.", registry=own)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
