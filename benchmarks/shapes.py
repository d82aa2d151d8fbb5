"""The sizes that kernels are timed at.

Letters: T positions, H the student's hidden width, HT the teacher's, V vocabulary, K ids of each model, B prompts.

Shapes form a star around K = 32 and V = 151,936: every T and H there, the other values of K and V at one T and H. The full grid of
3 · 3 · 2 · 3 would take six times as long and tell nothing more, since times are proportional to V and K enters below a few percent.
"""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass

V_TEACHER, V_STUDENT = 151_936, 163_958
"""Rows of the teacher's and of the student's head; the student's width is no multiple of any block."""
USED_IDS = 151_643
"""Ids below this one are text in both vocabularies."""
POSITIONS, WIDTHS, VOCABULARIES, KS = (1_024, 4_096, 16_384), (896, 1_024, 2_048), (V_TEACHER, V_STUDENT), (8, 32, 64)
PAIRS = ((896, 1_024), (896, 2_048), (2_048, 2_048))
"""(H, HT) of a student and its teacher."""
ROLLOUT_ROWS = 40
"""Rows of one decoding step: the batch that the published recipe gives a GPU."""
ORIGINAL_ROWS, ORIGINAL_RHO = 40 * 64, 5
"""Positions of that recipe's step, and how many positions its full logits hold for each one it needs: 256 of prompt to 64 of answer."""
DECODERS = {896: (14, 2, 64, 4_864), 2_048: (16, 2, 128, 11_008), 192: (6, 2, 32, 1_024), 48: (6, 2, 8, 130)}
"""Hidden width → query heads, key-value heads, features of a head, width of the feed-forward layers; the last two are for a CPU."""
DECODE_ROWS, DECODE_LENGTH = (64, 256, 128, 1), 200
"""Rows of a decode step, and the keys that each looks at: a clip of ten seconds and half of its words."""
MIXED_CLIPS, MIXED_SEED, MIXED_SPREAD = {"cuda": 64, "cpu": 32}, 0, 0.5
"""Clips of a batch of mixed lengths; the seed and the logarithmic spread of their lengths, the longest 2 to 3 times the mean."""
TOKENS_PER_SECOND = 3
"""Ids of a transcript for each second of speech."""
TEMPLATE = 11
"""Ids of a transcription prompt beside the audio's placeholders."""
PROMPT, AUDIO = 464, 375
"""Ids of a 30 s prompt, placeholders among them, of the embedding merge."""


@dataclass(frozen=True, kw_only=True)
class Speech:
    """What a speech model has beside its decoder's layers, and the clips that it is timed on."""

    layers: int
    """Of the decoder."""
    V: int
    text: int
    """Ids below it are text."""
    width: int
    """Of the encoder, as are the next three."""
    encoder_layers: int
    encoder_heads: int
    encoder_inner: int
    keys: tuple[int, int] = (130, 170)
    """Keys that a decode step's rows look at, from and to: clips of about ten seconds in the midst of their words."""
    clip: float = 10.0
    """Seconds of a clip where all are equal."""
    middle: float = 7.0
    """Seconds of the middle one of mixed clips."""


MODELS = {
    896: Speech(layers=24, V=V_STUDENT, text=USED_IDS, width=1_280, encoder_layers=32, encoder_heads=20, encoder_inner=5_120),
    2_048: Speech(layers=36, V=V_TEACHER, text=USED_IDS, width=1_280, encoder_layers=32, encoder_heads=20, encoder_inner=5_120),
    192: Speech(layers=4, V=8_192, text=8_000, width=256, encoder_layers=4, encoder_heads=4, encoder_inner=1_024),
    48: Speech(
        layers=2, V=2_003, text=1_900, width=32, encoder_layers=2, encoder_heads=2, encoder_inner=64, keys=(15, 25), clip=1.0, middle=1.4
    ),
}
"""Decoder's width → the rest of its model: the published two, one that a CPU runs in seconds, and a toy."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One case; a size that an op does not have is 0."""

    T: int
    V: int = 0
    H: int = 0
    HT: int = 0
    K: int = 0
    B: int = 0
    mode: str = ""
    """Which of an op's jobs this is, where it has several."""
    core: bool = True
    """Whether a goal or the README needs it: core shapes come first, and only they run the providers that compile."""

    def __str__(self) -> str:
        sizes = [f"{name}{value}" for name, value in self.sizes().items() if name != "mode"]
        return "-".join([*([self.mode] if self.mode else []), *sizes])

    def sizes(self) -> dict[str, int | str]:
        """What is not 0, by letter: how results name the shape."""
        named = dataclasses.asdict(self)
        del named["core"]
        return {name: value for name, value in named.items() if value}


def ordered(shapes: list[Shape]) -> list[Shape]:
    """Core shapes first; a time budget cuts the end."""
    return sorted(shapes, key=lambda shape: not shape.core)


def row_shapes(device: str, *, modes: tuple[str, ...] = ("",)) -> list[Shape]:
    """[T, V] buffers and the K ids wanted from each row; the mode "rollout" is one decoding step."""
    if device == "cpu":
        return [Shape(T=9, V=2_003, K=8, mode=mode) for mode in modes]
    found = []
    for mode in modes:
        rows = (ROLLOUT_ROWS,) if mode == "rollout" else POSITIONS
        found += [Shape(T=T, V=V_TEACHER, K=32, mode=mode) for T in rows]
        found += [Shape(T=rows[len(rows) // 2], V=V_TEACHER, K=K, mode=mode, core=False) for K in KS if K != 32]
        found.append(Shape(T=rows[len(rows) // 2], V=V_STUDENT, K=32, mode=mode, core=False))
    return ordered(found)


def linear_shapes(device: str, *, mode: str = "", k: bool = True) -> list[Shape]:
    """A [T, H] × [H, V] product and, with ``k``, the K ids wanted from each row."""
    if device == "cpu":
        return [Shape(T=9, V=2_003, H=48, K=8 if k else 0, mode=mode)]
    found = [Shape(T=T, V=V_TEACHER, H=H, K=32 if k else 0, mode=mode) for T in POSITIONS for H in WIDTHS]
    found += [Shape(T=4_096, V=V_TEACHER, H=1_024, K=K, mode=mode, core=False) for K in KS if k and K != 32]
    found.append(Shape(T=4_096, V=V_STUDENT, H=1_024, K=32 if k else 0, mode=mode, core=False))
    return ordered(found)


def pair_shapes(device: str) -> list[Shape]:
    """A student and its teacher over one vocabulary; the mode "original" is the published recipe's step."""
    if device == "cpu":
        return [Shape(T=10, V=2_003, H=32, HT=48, K=8), Shape(T=10, V=2_003, H=32, HT=48, K=8, B=2, mode="original")]
    found = [Shape(T=T, V=V_TEACHER, H=H, HT=HT, K=32) for T in POSITIONS for H, HT in PAIRS]
    found.append(Shape(T=ORIGINAL_ROWS, V=V_TEACHER, H=896, HT=2_048, K=32, B=40, mode="original"))
    found += [Shape(T=4_096, V=V_TEACHER, H=896, HT=2_048, K=K, core=False) for K in KS if K != 32]
    found.append(Shape(T=4_096, V=V_STUDENT, H=896, HT=2_048, K=32, core=False))
    return ordered(found)


def prompt_shapes(device: str) -> list[Shape]:
    """B prompts of T / B ids, forward and backward."""
    if device == "cpu":
        return [Shape(T=3 * 40, V=2_003, H=48, B=3, mode=mode) for mode in ("forward", "backward")]
    modes = ("forward", "backward")
    return [Shape(T=40 * PROMPT, V=V_STUDENT, H=H, B=40, mode=mode) for mode in modes for H in WIDTHS]


def decode_shapes(device: str, *, modes: tuple[str, ...]) -> list[Shape]:
    """T rows of a decoder of width H; the first of the modes, which names an op or all of them, is the core one."""
    if device == "cpu":
        return [Shape(T=5, H=48, mode=mode) for mode in modes]
    return ordered([Shape(T=T, H=H, mode=mode, core=mode == modes[0]) for mode in modes for T in DECODE_ROWS for H in (896, 2_048)])


def mixed_seconds(H: int, count: int) -> list[float]:
    """Lengths of clips as corpora have them: log-normal, the middle one the model's, from a seventh of it to 30 / 7 of it, whole frames."""
    dice, middle = random.Random(MIXED_SEED), MODELS[H].middle
    drawn = [dice.lognormvariate(math.log(middle), MIXED_SPREAD) for _ in range(count)]
    return [round(min(max(one, middle / 7), middle * 30 / 7), 2) for one in drawn]


def prompt_length(seconds: float) -> int:
    """Ids of a clip's prompt: an embedding for every four frames of the encoder, and the template around them."""
    return max(encoder_frames(seconds) // 4, 1) + TEMPLATE


def encoder_frames(seconds: float) -> int:
    """Frames of a clip in the encoder's layers: 50 a second."""
    return (round(100 * seconds) + 1) // 2


def clip_shape(H: int, clips: int, mode: str, *, core: bool = True) -> Shape:
    """``clips`` clips of one length, or of mixed lengths where the mode is "transcribe".

    T counts the encoder's frames, and T · HT · V is one product of its feed-forward layers; in "prefill" it counts prompt positions, and
    T · H · V is one of the decoder's.
    """
    model, inner = MODELS[H], DECODERS[H][3]
    seconds = mixed_seconds(H, clips) if mode == "transcribe" else [model.clip] * clips
    if mode == "prefill":
        return Shape(T=sum(map(prompt_length, seconds)), V=inner, H=H, B=clips, mode=mode, core=core)
    return Shape(T=sum(map(encoder_frames, seconds)), V=model.encoder_inner, H=H, HT=model.width, B=clips, mode=mode, core=core)


RTFX_CLIPS = {"cuda": 512, "cpu": 6}
"""Clips of a whole transcription: enough that its end, where few rows are left, is a small part."""


def rtfx_shapes(device: str) -> list[Shape]:
    """Whole transcriptions: from samples, and from files of each codec; the published corpora's own codec first."""
    found = []
    for H in (896, 2_048) if device == "cuda" else (48,):
        count = RTFX_CLIPS[device]
        frames = sum(map(encoder_frames, mixed_seconds(H, count)))
        modes = ("samples", "flac", "wav", "mp3")
        found += [Shape(T=frames, H=H, B=count, mode=mode, core=H != 2_048 or mode == "flac") for mode in modes]
    return ordered(found)


def engine_shapes(device: str) -> list[Shape]:
    """Phases of transcription and the whole of it. Models follow each other, since only one is kept; the goals are about the first."""
    if device == "cpu":
        steps = [Shape(T=5, V=MODELS[48].V, H=48, mode="step")]
        return steps + [clip_shape(48, clips, mode) for mode, clips in (("encoder", 3), ("prefill", 3), ("transcribe", 6))]
    found = []
    for H in (896, 2_048):
        core = H == 896
        found.append(clip_shape(H, MIXED_CLIPS[device], "transcribe", core=core))
        found += [Shape(T=T, V=MODELS[H].V, H=H, mode="step", core=core) for T in DECODE_ROWS]
        found += [clip_shape(H, B, "prefill", core=core) for B in (64, 1)]
        # The encoder is the same in both.
        found += [clip_shape(H, B, "encoder") for B in (64, 256, 1)] if core else []
    return ordered(found)
