"""The container and the proxy: every path, flag, port and limit in their files is one that the project has."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from arkfast import command_line
from arkfast.serve.app import ROUTES
from arkfast.serve.options import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = ServeConfig(model=Path("m"))


def instructions() -> list[tuple[str, str]]:
    """(instruction, what follows it) of the Dockerfile, lines that go on joined and comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def only(name: str) -> str:
    (found,) = (rest for instruction, rest in instructions() if instruction == name)
    return found


def config(text: str) -> ServeConfig:
    words = json.loads(only("ENTRYPOINT")) + shlex.split(text)
    assert words[:2] == ["arkfast", "serve"]
    return command_line.parse(ServeConfig, words[2:], prog="arkfast serve", description="", position="model")


def test_the_container_copies_what_is_there_and_what_the_build_needs():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    copied = set()
    for instruction, rest in instructions():
        if instruction == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            copied |= set(sources)
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source in kept, f"{source} is in the Dockerfile and .dockerignore leaves it out"
    assert set(kept) <= copied, "what .dockerignore lets through is copied"
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"], "setup.py", "arkfast", "kernels", "csrc"} <= copied
    (install,) = (rest for instruction, rest in instructions() if instruction == "RUN" and "pip install" in rest)
    extras = re.search(r"'\.\[([\w,]+)\]'", install)
    assert extras is not None
    assert {"asr", "serve"} <= set(extras[1].split(",")) <= set(project["optional-dependencies"])
    constraints = re.search(r"-c (\S+)", install)
    assert constraints is not None
    assert constraints[1] in copied
    for version in re.findall(r"^FROM python:(\d+)\.(\d+)", "\n".join(" ".join(each) for each in instructions()), re.MULTILINE):
        assert tuple(map(int, version)) >= (3, 10)


def test_the_container_serves_as_a_user_without_rights_behind_keys():
    order = [instruction for instruction, _ in instructions()]
    assert order.index("USER") < order.index("ENTRYPOINT")
    user = only("USER")
    assert user not in ("root", "0")
    assert any(instruction == "RUN" and f"--uid 1000 {user}" in rest for instruction, rest in instructions())
    served = config(" ".join(json.loads(only("CMD"))))
    assert served.is_public
    assert not served.public_without_keys, "so that it does not start without a key"
    assert int(only("EXPOSE")) == served.port == DEFAULTS.port
    (own,) = (rest.partition(f"chown {user} ")[2].split() for instruction, rest in instructions() if f"chown {user} " in rest)
    environment = dict(part.split("=", 1) for part in only("ENV").split())
    assert {str(served.spool), environment["HF_HOME"]} <= set(own), "it may write where it must"


def test_the_container_has_a_compiler_for_what_is_built_on_a_gpu():
    found = instructions()
    last = max(number for number, (instruction, _) in enumerate(found) if instruction == "FROM")
    assert any(instruction == "RUN" and re.search(r"apt-get install .*\bg\+\+", rest) for instruction, rest in found[last:])


def test_the_container_is_healthy_when_the_engine_decodes():
    words = json.loads(only("HEALTHCHECK").partition("CMD ")[2])
    assert words[:2] == ["python", "-c"]
    compile(words[2], "HEALTHCHECK", "exec")
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", words[2])
    assert url is not None
    assert (int(url[1]), url[2]) == (DEFAULTS.port, "/ready")
    assert url[2] in ROUTES
    # Nobody listens: it is unhealthy. Where the service answers it is healthy, whatever proxy the variables name.
    done = subprocess.run([sys.executable, "-c", words[2].replace(url[1], "1")], capture_output=True)
    assert done.returncode != 0

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/ready" else 404)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-c", words[2].replace(url[1], str(server.server_port))]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"http_proxy": "http://127.0.0.1:1"}, timeout=60)
        server.shutdown()
    assert done.returncode == 0, done.stderr


def test_the_page_runs_the_container_as_it_is():
    text = (ROOT / "docs" / "service.md").read_text(encoding="utf-8")
    (run,) = re.findall(r"^docker run ((?:.*\\\n)*.*)$", text, flags=re.MULTILINE)
    words = shlex.split(run.replace("\\\n", " "))
    assert words[words.index("-p") + 1].endswith(f":{DEFAULTS.port}")
    assert any(word.startswith("ARKFAST_API_KEYS=") for word in words)
    (build,) = re.findall(r"^docker build (.*?)(?:\s+#.*)?$", text, flags=re.MULTILINE)
    name = shlex.split(build)[shlex.split(build).index("-t") + 1]
    assert config(shlex.join(words[words.index(name) + 1 :])).model == Path("AutoArk-AI/ARK-ASR-0.6B")


def directives() -> list[tuple[str, ...]]:
    """Every directive of the proxy's file with its words."""
    text = re.sub(r"#.*", "", (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8"))
    assert text.count("{") == text.count("}")
    return [tuple(shlex.split(part)) for part in re.split(r"[;{}]", text) if part.strip()]


def value(name: str) -> str:
    (found,) = {words[1] for words in directives() if words[0] == name}
    return found


def seconds(name: str) -> int:
    found = re.fullmatch(r"(\d+)s", value(name))
    assert found is not None
    return int(found[1])


def test_the_proxy_balances_the_script_s_ports_and_asks_no_less_than_the_service():
    found = directives()
    assert ("least_conn",) in found
    ports = [int(words[1].rpartition(":")[2]) for words in found if words[0] == "server" and len(words) > 1]
    assert ports == [DEFAULTS.port + number for number in range(4)]
    assert value("proxy_request_buffering") == value("proxy_buffering") == "off"
    assert value("proxy_http_version") == "1.1"
    # The service's own limits come first, for its answers say what is wrong.
    size = re.fullmatch(r"(\d+)m", value("client_max_body_size"))
    assert size is not None
    assert DEFAULTS.max_upload_mb * 1e6 < int(size[1]) * 2**20 < DEFAULTS.max_upload_mb * 1.1e6
    assert seconds("proxy_read_timeout") > DEFAULTS.timeout
    assert seconds("client_body_timeout") >= DEFAULTS.upload_timeout
    assert {words[1] for words in found if words[0] == "proxy_set_header"} == {"Connection", "Host", "X-Request-ID"}
    closed = [words[-1] for words in found if words[0] == "location" and words[-1] != "/"]
    assert all(any(fnmatch.fnmatch(route, f"{path}*") for route in ROUTES) for path in closed), "each is a route of the service"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_nginx_takes_the_file(tmp_path: Path):
    key, certificate = tmp_path / "example.org.key", tmp_path / "example.org.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=example.org", "-days", "1"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    text = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for old, new in (("/etc/nginx/", f"{tmp_path}/"), ("/var/log/nginx/", f"{tmp_path}/"), ("/run/", f"{tmp_path}/")):
        text = text.replace(old, new)
    folders = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(text.replace("http {", "http {\n" + folders, 1))
    done = subprocess.run(["nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
