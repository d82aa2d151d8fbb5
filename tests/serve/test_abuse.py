"""What a hostile or mistaken client sends: every answer is OpenAI's error body, says which field is at fault, and gives nothing away."""

from __future__ import annotations

import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from arkfast.testing import write_wav

if TYPE_CHECKING:
    from tests.serve.conftest import Running

pytestmark = pytest.mark.slow


def check(answer: httpx.Response, status: int, *, param: str | None = None, code: str | None = None) -> str:
    """The message of an error that has OpenAI's form and holds no path and no name of an exception."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    assert code is None or error["code"] == code
    assert not re.search(r"/tmp|/home|/usr|\.npy|Error\b|Traceback|recording\.\w+", error["message"]), error["message"]
    return str(error["message"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "nan"), ("temperature", "inf"), ("temperature", "-1"), ("temperature", "1e-40"), ("top_p", "0"), ("top_p", "1.5"),
        ("top_k", "-1"), ("top_k", "2.5"), ("max_new_tokens", "1000000000"), ("max_new_tokens", "0"), ("repetition_penalty", "0"),
        ("begin_time", "nan"), ("begin_time", "-inf"), ("end_time", "-2"), ("seed", "-1"), ("response_format", "xml"), ("stream", "maybe"),
        ("timestamp_granularities[]", "phoneme"), ("language", "Klingonese"), ("prompt", "x" * 5000), ("nonsense", "1"),
        ("top_k", "--5"), ("seed", "9" * 40),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(service: Running, clips: Path, field: str, value: str):
    check(service.post(file=clips / "1.wav", **{field: value}), 400, param=field)


def test_fields_that_do_not_go_together(service: Running, clips: Path):
    check(service.post(file=clips / "1.wav", begin_time="0.8", end_time="0.2"), 400, param="begin_time")
    check(service.post(file=clips / "1.wav", stream="true", response_format="srt"), 400, param="stream")
    words = {"timestamp_granularities[]": "word", "response_format": "json"}
    check(service.post(file=clips / "1.wav", **words), 400, param="timestamp_granularities[]")
    check(service.post("/asr", file=clips / "1.wav", response_format="srt"), 400, param="response_format")


def test_an_unknown_model_is_not_found(service: Running, clips: Path):
    assert "whisper-1" in check(service.post(file=clips / "1.wav", model="whisper-1"), 404, code="model_not_found")


def test_recordings_that_are_none(service: Running, clips: Path, tmp_path: Path):
    check(service.post(file=clips / "text.wav"), 400, param="file", code="invalid_audio")
    check(service.post(file=clips / "1.wav", begin_time="5"), 400, param="file")
    (tmp_path / "empty.wav").write_bytes(b"")
    check(service.post(file=tmp_path / "empty.wav"), 400, param="file")
    check(service.post(), 400, param="file")
    with service.client as client:
        check(client.post("/asr", json={"file": "x"}), 415)
        check(client.post("/asr", content=b"x", headers={"Content-Type": "multipart/form-data"}), 400)
        check(client.post("/asr", content=b"x", headers={"Content-Type": "multipart/form-data; boundary=b"}), 400)
        check(client.get("/asr"), 405)
        check(client.get("/nothing"), 404)


def test_names_that_lead_elsewhere_lead_nowhere(service: Running, clips: Path):
    data = (clips / "1.wav").read_bytes()
    with service.client as client:
        for name in ("x" * 300 + ".wav", "../../../etc/passwd", "a\\..\\b.wav", "recording.npy", "x." + "y" * 300):
            assert client.post("/asr", files={"file": (name, data)}).status_code == 200, name


def test_one_sample_is_answered(service: Running, clips: Path):
    assert service.post(file=clips / "sample.wav").status_code in (200, 400)


def test_a_recording_that_is_too_long_or_grows_when_it_is_decoded(service: Running, tmp_path: Path):
    soundfile = pytest.importorskip("soundfile")
    silence = tmp_path / "bomb.flac"
    soundfile.write(silence, np.zeros(16000 * 3600, dtype=np.int16), 16000)
    assert silence.stat().st_size < 16000 * 2 * 3600 / 100
    assert "100 s" in check(service.post(file=silence), 413, code="audio_too_long")


def test_a_request_that_is_too_large(service: Running, tmp_path: Path):
    large = write_wav(tmp_path / "large.wav", np.zeros(3_000_000, dtype=np.float32))
    check(service.post(file=large), 413, code="too_large")


def raw(service: Running, head: str, *, body: bytes = b"", then: bytes = b"", times: int = 0) -> bytes:
    """Send bytes as they are, ``then`` again and again, and read what comes back."""
    host, port = service.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        try:
            for _ in range(times):
                line.sendall(then)
        except OSError:
            pass  # it was cut off, as it should be
        answer = b""
        try:
            while part := line.recv(65536):
                answer += part
                if b"\r\n\r\n" in answer and b"}}" in answer:
                    break
        except OSError:
            pass
    return answer


HEAD = "POST /asr HTTP/1.1\nHost: localhost\nContent-Type: multipart/form-data; boundary=b\n"


def test_a_length_of_a_gigabyte_is_refused_before_it_is_sent(service: Running):
    assert b" 413 " in raw(service, HEAD + "Content-Length: 1000000000\n")[:20]


def test_chunks_without_end_are_cut_off(service: Running):
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    answer = raw(service, HEAD + "Transfer-Encoding: chunked\n", then=chunk, times=2000)
    assert not answer or answer.split()[1] in (b"413", b"400")
    assert service.client.get("/health").status_code == 200


def test_a_body_that_does_not_come_ends_in_time(service: Running):
    started = time.monotonic()
    assert b" 408 " in raw(service, HEAD + "Content-Length: 1000\n", body=b"--b\r\n")[:20]
    assert time.monotonic() - started < 25


def test_two_lengths_are_refused(service: Running):
    assert raw(service, HEAD + "Content-Length: 10\nTransfer-Encoding: chunked\n", body=b"0\r\n\r\n").split()[1] == b"400"
    assert raw(service, HEAD + "Content-Length: 10\nContent-Length: 11\n").split()[1] == b"400"


def test_a_refusal_reaches_a_client_that_still_sends(service: Running):
    with service.client as client:
        for _ in range(20):
            check(client.post("/v1/audio/translations", files={"file": ("a.wav", bytes(3_000_000))}), 400, code="unsupported_model")


def test_foreign_pages_and_names_are_refused(service: Running, clips: Path):
    data = {"file": ("a.wav", (clips / "1.wav").read_bytes())}
    with service.client as client:
        check(client.post("/asr", files=data, headers={"Origin": "https://evil.example"}), 403, code="origin_not_allowed")
        for origin in ("http://[evil", "null"):
            check(client.post("/asr", files=data, headers={"Origin": origin}), 403, code="origin_not_allowed")
        check(client.get("/health", headers={"Host": "evil.example"}), 403, code="host_not_allowed")
        assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "https://evil.example"}).headers
        assert client.post("/asr", files=data, headers={"Origin": service.address}).status_code == 200
