"""The service's own description is true: it names every route, field and status, and what schemathesis makes of it is answered so."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from arkfast.serve import description, fields
from arkfast.serve.app import ROUTES

if TYPE_CHECKING:
    from tests.serve.conftest import Running

ROOT = Path(__file__).resolve().parents[2]
DESCRIBED = {name: said for name, said in vars(description).items() if isinstance(said, description.Description)}


def properties(said: description.Description) -> set[str]:
    assert said.extra is not None
    content: Any = said.extra["requestBody"]["content"]
    return set(content["multipart/form-data"]["schema"]["properties"])


def test_every_field_that_is_taken_is_described_and_no_other():
    assert properties(description.TRANSCRIPTIONS) == fields._OPENAI | {"file"}
    assert properties(description.ASR) == fields._ORIGINAL | {"file"}


def test_every_status_of_an_error_is_described():
    told = set()
    for path in (ROOT / "arkfast" / "serve").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="ApiError"), args=[ast.Constant(value=status), *_]):
                    told.add(status)
    assert {400, 401, 404, 413, 415, 429, 503} <= told
    for name in ("TRANSCRIPTIONS", "ASR"):
        assert told - set(DESCRIBED[name].responses) == set(), name


@pytest.mark.slow
def test_every_route_is_described(service: Running):
    with service.client as client:
        paths = client.get("/openapi.json").json()["paths"]
    # /admin/model exists where there is a key for it, and this service has none.
    assert set(paths) == set(ROUTES) - {"/admin/model"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_whatever_the_description_allows_is_answered_as_it_says(service: Running, clips: Path, mode: str):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    # Half of the files are recordings, so that fields are tried and not the file alone.
    recording = (clips / "1.wav").read_bytes()
    schemathesis.openapi.format("binary", st.one_of(st.just(recording), st.binary(max_size=2000)))
    schema = schemathesis.openapi.from_url(f"{service.address}/openapi.json")
    seen: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        statuses = seen.setdefault(operation.path, set())

        @settings(
            max_examples=30 if operation.method == "post" else 3,
            phases=[Phase.generate],
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
        def check(case: Any, statuses: set[int] = statuses) -> None:
            answer = case.call()
            statuses.add(answer.status_code)
            assert answer.status_code < 500, answer.text
            # That every allowed field is accepted cannot be said: a file of any bytes is allowed, and few are recordings.
            case.validate_response(answer, excluded_checks=[schemathesis.checks.CHECKS.get_one("positive_data_acceptance")])

        check()
    assert set(seen) == set(ROUTES) - {"/admin/model"}
    if mode == "positive":
        assert {200, 400} <= seen["/asr"]
        assert {200, 400} <= seen["/v1/audio/transcriptions"]
    else:
        assert seen["/asr"] <= {400, 404, 415}
