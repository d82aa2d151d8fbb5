"""How to transcribe: the flags that ``arkfast transcribe`` and ``arkfast evaluate`` share.

Among them are those of open-audio-opd that have nothing to do here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from arkfast import command_line
from arkfast.audio import SAMPLING_RATE
from arkfast.audio.channels import check_choice, parse_channel
from arkfast.console import ConsoleOptions
from arkfast.data import Fields
from arkfast.infer.long import Vad
from arkfast.infer.speech import NoSpeech
from arkfast.infer.transcriber import Attention, DType, FeaturesFrom, Timestamps, check_limits
from arkfast.metrics import canonical, is_known, near
from arkfast.records import InputError, OnTruncated

if TYPE_CHECKING:
    from arkfast.engine import Sampling


@dataclass(frozen=True, kw_only=True)
class TranscribeOptions(ConsoleOptions):
    """How to transcribe, wherever the rows come from and go to."""

    headings: ClassVar[dict[str, str]] = {
        "revision": command_line.MODEL, "batch_size": command_line.DECODING, "num_workers": command_line.MACHINE,
        "dtype": command_line.MODEL, "device": command_line.MACHINE, "attn_impl": command_line.MODEL, "audio_field": command_line.DATA,
        "allow_failures": command_line.OUTPUT, "target_sr": command_line.WITHOUT_EFFECT,
    }  # fmt: skip

    revision: str | None = None
    """Branch, tag or commit of --model_path where that is a Hugging Face repository; its default branch by default."""
    processor_path: Path | None = None
    """Folder of the tokenizer, or a Hugging Face repository as organisation/name@revision; the checkpoint's own by default."""
    batch_size: int | None = None
    """Most clips decoded together; transcripts do not depend on it. By default as many as the GPU's free memory holds, up to 256, and 40 on
    a CPU."""
    max_new_tokens: int = 256
    """Token limit of a transcript; one that reaches it has finish_reason "length"."""
    max_audio_seconds: float = 30.0
    """A longer clip is cut as --vad says, or is a failed row, and never a shortened one."""
    vad: Vad = "energy"
    """What chooses the places where a longer recording is cut: energy takes quiet ones, silero those without speech (by the package
    silero-vad), none cuts nothing."""
    timestamps: Timestamps = "segment"
    """word: rows say when each word was said, by a head that --stage ctc_head of arkfast train made or by --aligner; character: also when
    each letter was, by a head; segment: long recordings have the times of their segments alone."""
    aligner: Path | None = None
    """Folder of that head, the checkpoint's own by default; or Qwen3's forced aligner, a folder or a Hugging Face repository as
    organisation/name."""
    confidence: bool = False
    """Rows say how sure the model was: avg_logprob, compression_ratio, repetition, confidence and word_confidence."""
    calibration: Path | None = None
    """With --confidence, a file of scripts/calibrate_confidence.py, by which confidences become shares of right words."""
    no_speech: NoSpeech = "mark"
    """What becomes of the transcript of a clip without speech: mark gives its row no_speech, skip leaves its text out too, keep judges
    nothing."""
    hotwords: Path | None = None
    """Text file of phrases that are preferred, one a line, where wanted with a tab and a weight behind it (2); rows may have their own."""
    max_tokens_per_second: float = 20.0
    """A transcript is also cut at so many tokens for each second of its audio, plus 32; 0 sets no such limit."""
    cut_loops: bool = True
    """Cut a transcript that repeats one phrase over and over; it has finish_reason "repetition"."""
    do_sample: bool = False
    """Draw tokens instead of taking the best one; a row's draws depend on --seed and its id, not on the rows beside it."""
    temperature: float = 0.5
    """With --do_sample, what scores are divided by."""
    top_p: float = 1.0
    """With --do_sample, draw from the smallest set of tokens that has this probability; 1 does not restrict."""
    top_k: int = 0
    """With --do_sample, draw from so many best tokens; 0 does not restrict."""
    seed: int = 0
    """With --do_sample, decides the draws."""
    repetition_penalty: float = 1.0
    """Scores of tokens that stand in the prompt or the transcript are divided by it, negative ones multiplied; 1 changes nothing."""
    audio_gain: float = 1.0
    """Samples are multiplied by it before features are made."""
    num_workers: int | None = None
    """Processes that read audio and make features; half the cores, at most 8, for a GPU and none for a CPU by default."""
    features: FeaturesFrom = "host"
    """Where log-mel features are made: host is the C++ front end, in the processes that read audio; device is PyTorch beside the model, for
    machines whose cores cannot keep up with their GPU. They differ by rounding."""
    spool_mb: int = 4096
    """Most MB of recordings of other machines (https://, s3://, gs:// and the like) that are held on this one's disk at once."""
    dtype: DType = "auto"
    """Type of the weights; auto is bfloat16 on a GPU and float32 elsewhere."""
    device: str | None = None
    """Device as torch spells it, such as cpu or cuda:1; the GPU where there is one."""
    attn_impl: Attention = "auto"
    """Attention of the decoder; auto is sdpa, and flash_attention_2 is taken for it."""
    audio_field: str = "audio"
    """Input field with the recording's path."""
    text_field: str = "text"
    """Input field with the reference transcript."""
    begin_field: str = "begin_time"
    """Input field with the segment's start in seconds."""
    end_field: str = "end_time"
    """Input field with the segment's end in seconds."""
    channel: str | None = None
    """Which channel is heard in rows that do not say it: a number from 0, several with commas whose average is heard, or average; the
    average of all by default."""
    audio_track: int | None = None
    """Which audio track of a container such as mp4 is heard in rows that do not say it, from 0; the first by default."""
    language: str | None = None
    """Language of the speech in rows that do not say it, as a code or a name; models whose prompt knows languages are told it."""
    on_truncated: OnTruncated = "warn"
    """What becomes of an Ogg file that ends on a page's boundary without the mark of its end, as some encoders leave it and as a broken
    download may: warn reads it and says so, fail refuses it. Every other truncated recording is refused."""
    allow_failures: bool = False
    """Exit with 0 although rows failed."""
    resume: bool = True
    """Take what a run of the same command that did not end well has done from the journal beside the output; false does everything anew."""
    retry_failed: bool = False
    """Do rows anew whose journal says that they failed; otherwise they stay failed."""
    allow_repeats: bool = False
    """Take rows that are identical, id and all, once; otherwise a repeated id is an error."""
    target_sr: int = SAMPLING_RATE
    """open-audio-opd's flag: 16000 is what the models hear, and the only value; files of any rate are resampled."""
    padding_side: Literal["left", "right"] = "left"
    """open-audio-opd's flag, without effect: every prompt keeps its own length."""
    asr_block_token_id_from: int = 151670
    """open-audio-opd's flag, without effect: what a transcript may hold follows from the tokenizer."""

    def __post_init__(self) -> None:
        check_limits(
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            max_audio_seconds=self.max_audio_seconds,
            max_tokens_per_second=self.max_tokens_per_second,
            num_workers=self.num_workers,
            audio_gain=self.audio_gain,
        )
        if self.spool_mb < 1:
            raise InputError(f"--spool_mb must be at least 1, got {self.spool_mb}")
        check_choice(self.channel, self.audio_track)
        if self.language is not None:
            check_language(self.language)
        self._check()

    def _check(self) -> None:
        if self.target_sr != SAMPLING_RATE:
            raise InputError(
                f"--target_sr {self.target_sr}: the models hear {SAMPLING_RATE} Hz, and files of any other rate are resampled; leave it out"
            )
        if self.do_sample and self.temperature == 0:
            raise InputError("--do_sample needs a --temperature above 0; leave out --do_sample to take the best token")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed must be at least 0 and below 2⁶³, got {self.seed}")
        if self.do_sample or self.repetition_penalty != 1:
            try:
                self.sampling()
            except ValueError as error:
                raise InputError(
                    f"--{error}; expected temperature > 0, 0 < top_p ≤ 1, top_k ≥ 0 and repetition_penalty > 0, all finite"
                ) from error

    @property
    def row_fields(self) -> Fields:
        """What a manifest's rows call their fields, and what holds for rows that do not say."""
        return Fields(
            audio=self.audio_field,
            text=self.text_field,
            begin=self.begin_field,
            end=self.end_field,
            channel=parse_channel(self.channel),
            audio_track=self.audio_track,
            on_truncated=self.on_truncated,
            remote=True,
        )

    def sampling(self) -> Sampling:
        """How ids are chosen.

        Raises:
            ValueError: a number is out of range.
        """
        from arkfast.engine import Sampling

        if not self.do_sample:
            return Sampling(repetition_penalty=self.repetition_penalty)
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
        )

    def notes(self) -> list[str]:
        """A sentence for each flag that is given and not obeyed as it stands; none for a value that is the default."""
        reasons: dict[str, tuple[object, str]] = {
            "padding_side": (self.padding_side, "every prompt keeps its own length, so no side is padded"),
            "asr_block_token_id_from": (self.asr_block_token_id_from, "what a transcript may hold follows from the tokenizer"),
        }
        if not self.do_sample:
            drawn: dict[str, object] = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "seed": self.seed}
            reasons |= {name: (value, "tokens are drawn with --do_sample only") for name, value in drawn.items()}
        defaults = {f.name: f.default for f in fields(TranscribeOptions)}
        notes = [f"--{name} {value}: has no effect: {why}" for name, (value, why) in reasons.items() if value != defaults[name]]
        if self.attn_impl == "flash_attention_2":
            notes.append("--attn_impl flash_attention_2: sdpa is used, which takes PyTorch's own flash kernels where they serve")
        return notes


def check_language(language: str) -> None:
    """Raise ``InputError`` for what is no language; a code of three letters may be one that the table lacks."""
    code = canonical(language)
    if code is None:
        raise InputError(f"--language '{language}' names no language; give a code such as zh, or leave it out")
    if not is_known(code) and not re.fullmatch("[a-z]{3}", code):
        meant = f"; did you mean {' or '.join(near(language))}" if near(language) else ""
        raise InputError(f"--language '{language}' is not known{meant}; give a code of ISO 639 such as zh or yue, or leave it out")
