"""The choice of the device, and that streams and events are that device's. GPUs are stand-ins: what is asked of them is recorded."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from arkfast.device import CUDNN, choose_attention, use_device
from arkfast.distill.teachers.direct import DirectTeacher
from arkfast.engine.prefill import side_by_side
from arkfast.engine.readback import Readback
from arkfast.records import InputError, Utterance
from arkfast.train.feed import batch_of
from arkfast.train.logging.phases import Phases

SECOND = torch.device("cuda", 1)


class Stream:
    def __init__(self, device: torch.device, name: str) -> None:
        self.device, self.name, self.waited = device, name, list[str]()

    def wait_stream(self, other: Stream) -> None:
        assert other.device == self.device, f"{self.name} waits for a stream of {other.device}"
        self.waited.append(other.name)


class Event:
    recorded: list[torch.device] = []  # noqa: RUF012

    def __init__(self, **_: bool) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        Event.recorded.append(stream.device if stream else torch.device("cuda", 0))  # without a stream, the current device's


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs, the first of which is the current one; the devices that were made current."""
    made: list[torch.device] = []
    current = {"device": torch.device("cuda", 0)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current["device"].index)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: (made.append(device), current.update(device=device)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(device or torch.device("cuda", 0), "main"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    Event.recorded.clear()
    monkeypatch.delenv(CUDNN, raising=False)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    yield made
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_the_chosen_gpu_becomes_the_current_one_and_cudnn_attention_goes(gpus: list[torch.device]) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    assert use_device("cuda:1") == SECOND
    assert gpus == [SECOND]
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert use_device(None, environment={CUDNN: "1"}) == SECOND, "the current one, where none is named"
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert use_device("cpu") == torch.device("cpu")
    assert gpus == [SECOND, SECOND]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "--device cuda:2: torch sees 2 GPUs here"),
        ("mps", "--device mps: arkfast runs on cpu and cuda"),
        ("meta", "--device meta: arkfast runs on cpu and cuda"),
        ("xpu", "--device xpu: arkfast runs on cpu and cuda"),
        ("gpu", "--device gpu: not a device that torch knows"),
        ("cuda:x", "--device cuda:x: not a device that torch knows"),
    ],
)
def test_a_device_that_cannot_be_used_is_one_sentence(gpus: list[torch.device], name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        use_device(name)
    assert not gpus


def test_the_switch_of_cudnn_attention_is_checked() -> None:
    with pytest.raises(InputError, match=f"{CUDNN}=yes: must be 0 or 1"):
        choose_attention({CUDNN: "yes"})


def test_clocks_and_readbacks_are_of_the_device_that_they_measure(gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    with Phases(SECOND)("step"):
        pass
    assert Event.recorded == [SECOND, SECOND]

    class Numbers(torch.Tensor):  # a tensor of the second GPU, as far as a readback asks
        is_cuda = True
        device = SECOND

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory, **b: empty(*a, **b))
    Readback(torch.zeros(3).as_subclass(Numbers))
    assert Event.recorded == [SECOND] * 3


def test_the_teachers_stream_waits_for_the_stream_of_its_own_device(gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    @contextmanager
    def inside(stream: Stream) -> Any:
        entered.append(stream.name)
        yield

    monkeypatch.setattr(torch.cuda, "stream", inside)
    teacher = SimpleNamespace(_stream=Stream(SECOND, "teacher"), _prefill=lambda batch: batch)
    assert DirectTeacher.begin(teacher, "batch") == "batch"
    assert teacher._stream.waited == ["main"]
    assert entered == ["teacher"]


def test_a_batch_for_a_gpu_is_pinned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    clip = Utterance(id="a", audio=None, text="one")
    features, prepared = np.zeros((128, 9), np.float32), {"mel": np.zeros((128, 7), np.float32)}
    item = SimpleNamespace(utterance=clip, features=features, prepared=prepared)
    prompt = SimpleNamespace(ids=lambda frames, utterance: [1, 2])
    for pin in (False, True):
        batch = batch_of([item], prompt, hears=True, prepared=True, targets=lambda _: [3], pinned=pin)
        assert len(pinned) == 9 * pin, "every tensor of the batch, the teacher's own among them"
    assert batch.teacher_inputs["mel"].values.shape == (1, 128, 7)


def test_clips_for_an_encoder_are_padded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **b: (asked.append(pin_memory), empty(*a, **b).fill_(9.0))[1])
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    clips = [torch.randn(2, 3), torch.randn(2, 5)]
    for device, pinned in (("cpu", False), ("cuda", True)):
        side = side_by_side(clips, torch.device(device))
        assert asked.pop() is pinned
        assert torch.equal(side[0], torch.nn.functional.pad(clips[0], (0, 2)))
        assert torch.equal(side[1], clips[1])
