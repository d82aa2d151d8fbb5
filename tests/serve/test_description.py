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


OPEN = ("model", "language", "begin_time", "end_time", "max_new_tokens", "hotwords", "timestamp_granularities", "timestamp_granularities[]")
"""Fields of which the description allows more than a service with a given model and a given recording takes."""


def statuses_of(operation: Any, mode: str, schemathesis: Any) -> set[int]:
    """The statuses with which a route answers what is made of its description; each answer is as described, and none the service's failure.

    Args:
        operation: the route.
        mode: positive for what it allows, negative for what it forbids.
        schemathesis: the package.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    # Two checks are left out: few files of any bytes are recordings, and in a form a forbidden null is the allowed text "null".
    left_out = [schemathesis.checks.CHECKS.get_one(name) for name in ("positive_data_acceptance", "negative_data_rejection")]
    seen: set[int] = set()

    @settings(
        max_examples=40 if operation.body else 3,
        phases=[Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)), plain=st.booleans())
    def ask(case: Any, plain: bool) -> None:
        if mode == "positive" and plain and isinstance(case.body, dict):
            case.body = {name: value for name, value in case.body.items() if name not in OPEN}
        answer = case.call()
        seen.add(answer.status_code)
        assert answer.status_code < 500, answer.text
        case.validate_response(answer, excluded_checks=left_out)

    ask()
    return seen


@pytest.mark.slow
def test_whatever_the_description_allows_or_forbids_is_answered_as_it_says(service: Running, clips: Path):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import strategies as st

    # Half of the files are recordings, and half of the forms have none of the open fields, so that some are transcribed.
    recording = (clips / "1.wav").read_bytes()
    schemathesis.openapi.format("binary", st.one_of(st.just(recording), st.binary(max_size=2000)))
    schemathesis.checks.load_all_checks()
    schema = schemathesis.openapi.from_url(f"{service.address}/openapi.json")
    operations = {found.ok().path: found.ok() for found in schema.get_all_operations()}
    assert set(operations) == set(ROUTES) - {"/admin/model"}
    allowed = {path: statuses_of(operation, "positive", schemathesis) for path, operation in operations.items()}
    # A route that takes no form cannot be asked wrongly.
    forbidden = {path: statuses_of(operation, "negative", schemathesis) for path, operation in operations.items() if operation.body}
    for path in ("/asr", "/v1/audio/transcriptions"):
        assert {200, 400} <= allowed.pop(path)
        assert 400 in forbidden[path]
        assert forbidden.pop(path) <= {200, 400, 404, 415}
    assert forbidden == {}
    assert allowed.pop("/v1/audio/translations") == {400}
    assert allowed.pop("/page/{name}") <= {200, 404}
    assert set().union(*allowed.values()) == {200}
