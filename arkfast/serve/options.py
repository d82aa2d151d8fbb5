"""The flags of ``arkfast serve``, and what must hold among them."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from arkfast import command_line
from arkfast.infer.long import Vad
from arkfast.infer.speech import NoSpeech
from arkfast.infer.transcriber import Attention, DType, check_limits
from arkfast.records import InputError

NAME = "ark-asr"
"""What clients may call whatever model is served, as open-audio-opd's do."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The flags of ``arkfast serve``."""

    headings: ClassVar[dict[str, str]] = {
        "model": command_line.FIRST, "revision": command_line.MODEL, "slots": command_line.DECODING, "host": command_line.ADDRESS,
        "max_upload_mb": command_line.LIMITS, "device": command_line.MACHINE, "log_file": command_line.OUTPUT,
    }  # fmt: skip

    model: Path
    """Folder of a Transformers checkpoint, or a Hugging Face repository as organisation/name."""
    revision: str | None = None
    """Branch, tag or commit of --model where that is a repository; its default branch by default."""
    processor_path: Path | None = None
    """Folder of the tokenizer, or a Hugging Face repository as organisation/name@revision; the checkpoint's own by default."""
    dtype: DType = "auto"
    """Type of the weights; auto is bfloat16 on a GPU and float32 elsewhere."""
    attn_impl: Attention = "auto"
    """Attention of the decoder; auto is sdpa, and flash_attention_2 is taken for it."""
    slots: int | None = None
    """Most clips decoded together; as many as the device's free memory holds by default, up to 256, and 40 on a CPU. Transcripts do not
    depend on it."""
    max_new_tokens: int = 256
    """Token limit of a clip's transcript, and the most that a request may ask for; a transcript that reaches it says so."""
    max_audio_seconds: float = 30.0
    """A longer recording is cut into clips of at most this length, as --vad says; nothing is left out."""
    vad: Vad = "energy"
    """What chooses the places where a longer recording is cut: energy takes quiet ones, silero those without speech (by the package
    silero-vad), none refuses longer recordings."""
    max_tokens_per_second: float = 20.0
    """A transcript is also cut at so many tokens for each second of its audio, plus 32; 0 sets no such limit."""
    aligner: Path | None = None
    """Folder of a head that --stage ctc_head of arkfast train made, which tells when words were said, or Qwen3's forced aligner, as a
    folder or organisation/name; the head beside the checkpoint's weights by default, and where there is none, times of words are
    refused."""
    confidence: bool = True
    """Segments and words of verbose_json say how sure the model was."""
    no_speech: NoSpeech = "mark"
    """What becomes of the transcript of a clip without speech: mark says so beside it, skip leaves its text out too, keep judges
    nothing."""
    hotwords: Path | None = None
    """Text file of phrases that are preferred, one a line, where wanted with a tab and a weight behind it (2); a request may add its
    own."""
    encoder_cache_mb: float = 256.0
    """Millions of bytes in which the engine keeps what it heard in the latest clips, on its device, so that the same recording, sent again
    by the same client, is neither read nor encoded; 0 keeps nothing."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines can reach needs keys (--api_keys)."""
    port: int = 8025
    """Port to listen on; 0 takes a free one, which is printed."""
    api_keys: Path | None = None
    """File with a key in each line, as NAME:KEY; names stand in logs and metrics. The variable ARKFAST_API_KEYS holds such lines too, with
    commas between."""
    admin_key: Path | None = None
    """File with the key of POST /admin/model, or the variable ARKFAST_ADMIN_KEY; without it there is no such route."""
    public_without_keys: bool = False
    """Listen on an address that other machines can reach without any key. Whoever reaches it can use the service."""
    cors_origin: tuple[str, ...] = ()
    """Origins whose pages may call the service, such as https://app.example; none but its own page by default."""
    max_upload_mb: float = 200.0
    """Largest request in millions of bytes."""
    max_duration: float = 7200.0
    """Longest recording in seconds."""
    max_requests: int = 64
    """Requests in the house at once, those that are being received included; more get 429."""
    max_requests_per_key: int = 32
    """The same for each key; without keys, for each address."""
    upload_timeout: float = 120.0
    """Seconds within which a request must have been received."""
    timeout: float = 600.0
    """Seconds within which a received request must have been answered; it gets 503 after that and its slots are freed."""
    drain_seconds: float = 30.0
    """Seconds that a stopping service gives requests which are under way."""
    device: str | None = None
    """Device as torch spells it, such as cpu or cuda:1; the GPU where there is one."""
    num_workers: int = 2
    """Processes that decode recordings and make features."""
    spool: Path | None = None
    """Folder for uploads while they are worked on; a folder of its own under the system's temporary one by default."""
    log_file: Path | None = None
    """Write the log, a JSON object a line without any transcript, to this file too; it is rotated at 50 MB, and
    four older ones are kept."""
    log_to_console: bool = True
    """Write the log to standard error; without it there must be a --log_file."""

    def __post_init__(self) -> None:
        check_limits(
            batch_size=self.slots,
            max_new_tokens=self.max_new_tokens,
            max_audio_seconds=self.max_audio_seconds,
            max_tokens_per_second=self.max_tokens_per_second,
        )
        for name in ("max_upload_mb", "max_duration", "upload_timeout", "timeout"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(f"--{name} must be above 0 and finite, got {value}")
        for name in ("max_requests", "max_requests_per_key", "num_workers"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in ("drain_seconds", "encoder_cache_mb"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"--{name} must be at least 0 and finite, got {getattr(self, name)}")
        if not self.log_to_console and self.log_file is None:
            raise InputError("--log_to_console False: nobody would have the log; give --log_file FILE")
        if not 0 <= self.port < 1 << 16:
            raise InputError(f"--port must be 0 to 65535, got {self.port}")
        for origin in self.cors_origin:
            scheme, separator, rest = origin.partition("://")
            if scheme not in ("http", "https") or not separator or not rest or "/" in rest or "*" in rest:
                raise InputError(f"--cors_origin {origin}: give a whole origin without a path, such as https://app.example")

    @property
    def encoder_cache_bytes(self) -> int:
        """``encoder_cache_mb`` in bytes."""
        return int(self.encoder_cache_mb * 1e6)

    @property
    def is_public(self) -> bool:
        """Whether other machines can reach ``host``."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    def key_lines(self) -> list[tuple[str, str]]:
        """(where it stands, line) of every key, from the file and the environment."""
        return _lines("--api_keys", self.api_keys, "ARKFAST_API_KEYS")

    def admin_lines(self) -> list[tuple[str, str]]:
        """As ``key_lines``, of the key that may change the model."""
        return _lines("--admin_key", self.admin_key, "ARKFAST_ADMIN_KEY")


def _lines(flag: str, path: Path | None, variable: str) -> list[tuple[str, str]]:
    found = []
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{flag} {path}: cannot be read ({type(error).__name__}); give a text file with a key in each line") from error
        found = [(f"{path}:{number}", line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
        if not any(line and not line.startswith("#") for _, line in found):
            raise InputError(f"{flag} {path}: holds no key; write one in each line, as NAME:KEY")
    found += [(variable, part.strip()) for part in os.environ.get(variable, "").split(",")]
    return [(where, line) for where, line in found if line and not line.startswith("#")]
