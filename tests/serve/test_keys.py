"""Keys, addresses and limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arkfast.cli import main
from arkfast.records import InputError
from arkfast.serve.errors import ApiError
from arkfast.serve.fair import Turns
from arkfast.serve.limits import House, Keys

if TYPE_CHECKING:
    from tests.serve.conftest import Running

KEY, ADMIN = "a-key-of-the-tests-0123", "an-admin-key-of-tests-01"


@pytest.mark.slow
def test_a_key_is_needed_where_there_are_some(start: Callable[..., Running], clips: Path, tmp_path: Path, model: Path):
    keys = tmp_path / "keys"
    keys.write_text(f"# people\nanna:{KEY}\n")
    service = start("--api_keys", str(keys), environment={"ARKFAST_ADMIN_KEY": ADMIN})
    assert service.post(file=clips / "1.wav").json()["error"]["code"] == "missing_api_key"
    wrong = service.post(file=clips / "1.wav", authorization="Bearer something-else-0123")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    assert service.post(file=clips / "1.wav", authorization=f"Bearer {KEY}").status_code == 200
    with service.client as client:
        assert client.get("/v1/models").status_code == client.get("/metrics").status_code == client.get("/token-mask").status_code == 401
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        headers = {"Authorization": f"Bearer {KEY}"}
        said = client.get("/metrics", headers=headers).text
        assert 'arkfast_audio_seconds_total{key="anna"} 1.0' in said
        assert client.post("/admin/model", json={"model": str(model)}, headers=headers).status_code == 401, (
            "a client's key is not the admin's"
        )
        admin = {"Authorization": f"Bearer {ADMIN}"}
        assert client.post("/admin/model", json={"model": str(tmp_path / "none")}, headers=admin).status_code == 400
        assert client.post("/admin/model", json={"model": str(model)}, headers=admin).status_code == 200
        assert client.get("/ready").status_code == 200, "the new model serves"
    assert service.stop() == 0
    logged = "".join(service.said)
    assert '"key": "anna", "audio_seconds": 1.0' in logged
    assert KEY not in logged
    assert ADMIN not in logged


def test_a_public_address_without_keys_is_refused(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ARKFAST_API_KEYS", raising=False)
    assert main(["serve", str(model), "--host", "0.0.0.0"]) == 2
    assert "--api_keys FILE, or --public_without_keys" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["short", "anna:has a blank in it 123", f"{KEY}ü", f":{KEY}"])
def test_a_key_that_cannot_be_used_is_named_by_its_line(line: str):
    with pytest.raises(InputError, match=r"keys:3: "):
        Keys([("keys:3", line)])


def test_keys_and_names_stand_once():
    with pytest.raises(InputError, match="stands twice"):
        Keys([("keys:1", f"a:{KEY}"), ("keys:2", f"b:{KEY}")])
    with pytest.raises(InputError, match="stands twice"):
        Keys([("keys:1", f"a:{KEY}"), ("keys:2", f"a:{ADMIN}")])


def test_a_full_house_and_a_greedy_owner_are_told_so():
    house = House(3, 2)
    with house.entered("a"), house.entered("a"):
        with pytest.raises(ApiError) as greedy, house.entered("a"):
            pass
        assert (greedy.value.status, greedy.value.code) == (429, "rate_limit_exceeded")
        with house.entered("b"):
            with pytest.raises(ApiError) as full, house.entered("c"):
                pass
            assert (full.value.status, full.value.code) == (429, "overloaded")
            assert "Retry-After" in full.value.headers()
    assert house.count == 0
    house.closing = True
    with pytest.raises(ApiError) as stopping, house.entered("a"):
        pass
    assert stopping.value.status == 503


def test_owners_take_turns():
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        turns.add(item[0], item)
    assert turns.remove("a", "a2")
    assert not turns.remove("a", "a2")
    assert not turns.remove("z", "z1")
    assert [turns.take() for _ in range(6)] == ["a1", "b1", "c1", "a3", "c2", None]
    assert len(turns) == 0
