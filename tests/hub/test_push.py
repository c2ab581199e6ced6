"""``--push-to-hub`` against a stand-in for the Hub on this machine, in a process of its own: the
tests' own process is offline for good."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from peftport.cli.main import run
from peftport.errors import InputError
from peftport.formats import save_module
from peftport.hosts.load import load_host
from peftport.hub import check_push
from peftport.methods.base import config_from_json
from peftport.testing.pico import pico_bert
from peftport.train.reference import fresh_module


class StandIn(ThreadingHTTPServer):
    """What huggingface_hub asks of the Hub when a folder is uploaded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, bool] = {}  # name -> private
        self.files: dict[str, bytes] = {}
        self.commits = 0
        self.refuse = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, facts: Any, status: int = 200) -> None:
        body = json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/api/models/").removesuffix("/revision/main")
        private = self.server.repos.get(name)
        if private is None:
            self._answer({"error": "not found"}, 404)
        else:
            self._answer({"id": name, "private": private, "siblings": [], "sha": "0" * 40})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refuse:
            self._answer({"error": "Invalid credentials"}, self.server.refuse)
        elif self.path == "/api/repos/create":
            facts = json.loads(content)
            name = "/".join(filter(None, [facts.get("organization"), facts["name"]]))
            if name in self.server.repos:
                self._answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
                return
            self.server.repos[name] = facts.get("private") or facts.get("visibility") == "private"
            self._answer({"url": f"{self.server.url}/{name}", "name": name})
        elif "/preupload/" in self.path:
            files = json.loads(content)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            for line in content.decode().splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    value = row["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            self.server.commits += 1
            oid = "1" * 40
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            facts = {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid}
            self._answer({"success": True, "hookOutput": "", **facts})
        else:
            self._answer({})


@pytest.fixture
def hub() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def pushed(
    hub: StandIn, folder: Path, *more: str, command: str | None = None
) -> subprocess.CompletedProcess[str]:
    """``push`` (or a command line) in a process that may be online, with this Hub."""
    code = (
        "import sys; from pathlib import Path; from peftport.hub import push; "
        "from peftport.errors import PeftportError\n"
        "try: print(push(Path(sys.argv[1]), 'org/mine', public='--public' in sys.argv))\n"
        "except PeftportError as error: print(error, file=sys.stderr); sys.exit(error.exit_code)"
    )
    settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_standin",
                "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    line = [sys.executable, "-c", code, str(folder), *more]
    if command is not None:
        line = [sys.executable, "-m", "peftport", *command.split()]
    return subprocess.run(
        line, env=os.environ | settings, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    (made / "inner").mkdir(parents=True)
    (made / "README.md").write_text("---\nlibrary_name: peft\n---\n# x\n")
    (made / "inner/weights.safetensors").write_bytes(b"\x00\x01\x02")
    return made


def test_a_new_repository_is_private_and_gets_everything_at_once(
    hub: StandIn, folder: Path
) -> None:
    done = pushed(hub, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/org/mine/commit/{'1' * 40}"
    assert hub.repos == {"org/mine": True} and hub.commits == 1
    assert hub.files == {
        "README.md": (folder / "README.md").read_bytes(),
        "inner/weights.safetensors": b"\x00\x01\x02",
    }


def test_a_public_repository_is_filled_on_request_only(hub: StandIn, folder: Path) -> None:
    hub.repos["org/mine"] = False
    done = pushed(hub, folder)
    assert done.returncode == 2 and "everybody can read it" in done.stderr
    assert hub.files == {}
    assert pushed(hub, folder, "--public").returncode == 0
    assert set(hub.files) == {"README.md", "inner/weights.safetensors"}


def test_without_the_right_to_write_it_says_what_to_do(hub: StandIn, folder: Path) -> None:
    hub.refuse = 401
    done = pushed(hub, folder)
    assert done.returncode == 2 and "hf auth login" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and hub.files == {}


def test_the_command_pushes_what_it_wrote(hub: StandIn, tmp_path: Path) -> None:
    pico_bert(tmp_path / "host")
    host = load_host(str(tmp_path / "host"))
    save_module(
        fresh_module(host, config_from_json({"method": "lora"}), 0), tmp_path / "a", spec=host.spec
    )
    line = f"port {tmp_path}/a --target {tmp_path}/host -o {tmp_path}/b --push-to-hub org/b"
    done = pushed(hub, tmp_path, command=line)
    assert done.returncode == 0, done.stderr
    assert "Pushed to" in done.stdout and hub.repos == {"org/b": True}
    assert (
        hub.files["adapter_model.safetensors"]
        == (tmp_path / "b/adapter_model.safetensors").read_bytes()
    )


def test_offline_and_bad_ids_are_refused_before_anything_is_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("no-slash", "org/mine@v1", "../up"):
        with pytest.raises(InputError):
            check_push(name)
    line = f"port {folder} --target x -o {tmp_path}/o --push-to-hub org/mine@v1"
    assert run(line.split()) == 2
    assert "without a revision" in capsys.readouterr().err
    from peftport.hub import push

    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        push(folder, "org/mine")
