"""The page's routes and headers, and what its files may not hold."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from arkfast.serve.errors import ApiError
from arkfast.serve.options import ServeConfig
from arkfast.serve.page import INDEX, POLICY, STATIC, Page

if TYPE_CHECKING:
    from tests.serve.conftest import Running

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(STATIC.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}


def test_the_page_comes_whole_and_with_its_policy(service: Running):
    with service.client as client:
        page, ui = client.get("/"), client.get("/ui")
        assert page.status_code == ui.status_code == 200
        assert page.text == ui.text == FILES[INDEX]
        for name, text in FILES.items():
            answer = client.get(f"/page/{name}")
            assert (answer.status_code, answer.text) == (200, text)
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["permissions-policy"].startswith("microphone=(self)")
        assert client.get("/page/app.js").headers["content-type"] == "text/javascript; charset=utf-8"
        assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
        settings = client.get("/page/settings.json").json()
        assert settings["keys"] is False
        assert settings["words"] is True, "the model has a head that tells times of words"
        assert settings["max_upload_mb"] == 4.0
        described = client.get("/openapi.json").json()["paths"]
        assert {"/", "/ui", "/page/{name}", "/page/settings.json"} <= set(described)


@pytest.mark.parametrize(
    "path", ["/page/__init__.py", "/page/../app.py", "/page/..%2f__init__.py", "/page/%2e%2e/__init__.py", "/page//etc/passwd", "/page/"]
)
def test_nothing_but_the_page_s_files_is_given(service: Running, path: str):
    with service.client as client:
        answer = client.get(path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_name_is_never_a_path(model: Path):
    page = Page(ServeConfig(model=model), keys=False)
    assert page.file("app.js").status_code == 200
    for name in ("../__init__.py", str(STATIC / "app.js"), "./app.js", ""):
        with pytest.raises(ApiError, match="no such file"):
            page.file(name)


def directives(policy: str) -> dict[str, list[str]]:
    return {name: sources for name, *sources in (part.split() for part in policy.split(";"))}


def test_the_policy_lets_nothing_in_but_the_service_s_own():
    found = directives(POLICY)
    assert found["default-src"] == found["frame-ancestors"] == found["base-uri"] == found["form-action"] == ["'none'"]
    assert found["script-src"] == found["style-src"] == found["connect-src"] == ["'self'"]
    assert found["media-src"] == ["blob:"]
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "data:", "http:", "https:"} & {source for of in found.values() for source in of}


def test_the_markup_holds_no_script_no_style_and_no_foreign_address():
    markup = FILES[INDEX]
    assert re.findall(r"<script\b[^>]*>", markup) == ['<script type="module" src="page/app.js">']
    assert "<style" not in markup
    assert re.findall(r"\s(?:style|on\w+)=", markup) == []
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", markup) == ["page/icon.svg", "page/style.css", "page/app.js"]
    assert "url(" not in FILES["style.css"]
    assert "@import" not in FILES["style.css"]


def breaches(script: str) -> list[str]:
    """Where a script could write HTML, run text, or reach another address."""
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|setAttribute\(\"(?:on|style)|\.style\b"
    code = re.sub(r"(?<!:)//.*", "", script)
    return re.findall(ways, code) + re.findall(r"['\"`]https?://", code)


def test_what_comes_from_outside_is_set_as_text():
    assert {name: found for name, script in SCRIPTS.items() if (found := breaches(script))} == {}
    assert breaches('a.innerHTML = "x"; fetch("https://example.org")') == ["innerHTML", '"https://']
    for name, script in SCRIPTS.items():
        imported = re.findall(r"^import .* from \"(.*)\";$", script, flags=re.MULTILINE)
        assert all(source.removeprefix("./") in SCRIPTS for source in imported), name
        assert imported or "import " not in script, name


def languages() -> dict[str, dict[str, str]]:
    """The texts of each language, by name."""
    blocks = re.findall(r"^  (\w\w): \{\n(.*?)^  \},\n", FILES["texts.js"], flags=re.MULTILINE | re.DOTALL)
    return {code: dict(re.findall(r'^    (\w+): "(.*)",$', block, flags=re.MULTILINE)) for code, block in blocks}


def test_both_languages_say_everything_that_the_page_says():
    said = languages()
    assert set(said) == {"en", "zh"}
    assert said["en"].keys() == said["zh"].keys()
    for name, text in said["en"].items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", said["zh"][name])), name
    same = {name for name in said["en"] if said["en"][name] == said["zh"][name]}
    assert same == {"top_p"}, "nothing is left in English"
    named = set(re.findall(r'data-(?:text|label)="(\w+)"', FILES[INDEX]))
    everything = "".join(text for name, text in SCRIPTS.items() if name != "texts.js")
    assert named <= said["en"].keys()
    used = named | set(re.findall(r'"(\w+)"', everything))
    assert said["en"].keys() <= used, "a text that nobody says is left over"
    for name in re.findall(r'\b(?:text|say|ask|showError|hint|Failed|NoMicrophone)\((?:by\("[\w-]+"\), )?"(\w+)"', everything):
        assert name in said["en"]


def test_the_original_s_page_opens_the_service_s():
    page = (ROOT / "tools" / "ark_asr_vllm_test.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page, "the policy knows the script that is there, else a browser would not run it"
    assert breaches(script.replace("Type one such as http://", "").replace("`http://${typed}`", "")) == []
    assert 'value="http://127.0.0.1:8025"' in page
