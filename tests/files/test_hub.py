"""Sources: folders, the demo, and Hub ids, downloaded from a local server that imitates the Hub's API.

huggingface_hub reads its environment when it is imported, so every download runs in a process of its own.
"""

import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest
from adapting import write_peft

from mlx_qwen3.errors import SourceError
from mlx_qwen3.files import hub

ROOT = Path(__file__).parents[2]
MODEL = "Qwen/Qwen3-0.6B"
COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
WEIGHTS = "model-00002-of-00002.safetensors"
NEEDED = {
    "config.json": b'{"model_type": "qwen3"}',
    "generation_config.json": b"{}",
    "model-00001-of-00002.safetensors": bytes(range(256)) * 40,
    WEIGHTS: bytes(range(256)) * 50,
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"eos_token": "<|im_end|>"}',
    "vocab.json": b"{}",
    "merges.txt": b"#version: 0.2",
    "added_tokens.json": b"{}",
    "special_tokens_map.json": b"{}",
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "chat_template.jinja": "{{ '你好' }}".encode(),
}
OTHERS = {
    name: b"not needed: " + name.encode()
    for name in (
        ".gitattributes",
        "README.md",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "original/model.safetensors",
        "onnx/config.json",
        "onnx/model.onnx",
        "figures/model.png",
        "model.gguf",
        "training_args.bin",
    )
}
FILES = {**NEEDED, **OTHERS}
RUN = """
import sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits between its attempts
from mlx_qwen3.files import hub
from mlx_qwen3.errors import SourceError
try:
    print(hub.resolve(sys.argv[1]) if len(sys.argv) > 1 else hub.default_source())
except SourceError as error:
    print(error)
    sys.exit(3)
"""


class Hub(ThreadingHTTPServer):
    """Serves one model. `refusals` maps the beginning of a path to (status, X-Error-Code) and `cut` says how the
    connection of a download of WEIGHTS ends after half of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[str] = []
        self.refusals: dict[str, tuple[int, str]] = {}
        self.cut: str | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        for beginning, (status, code) in self.server.refusals.items():
            if path.startswith(beginning):
                return self.reply(status, b"", {"X-Error-Code": code})
        if path == f"/api/models/{MODEL}/revision/main":
            siblings = [{"rfilename": name} for name in FILES]
            return self.reply(200, json.dumps({"id": MODEL, "sha": COMMIT, "siblings": siblings}).encode())
        if path == f"/api/models/{MODEL}/tree/{COMMIT}":
            return self.reply(200, json.dumps([entry(name) for name in FILES]).encode())
        name = path.removeprefix(f"/{MODEL}/resolve/{COMMIT}/")
        if name in FILES:
            return self.resolve(name)
        name = path.removeprefix("/cdn/")
        if name in FILES:
            return self.download(name)
        return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})

    def resolve(self, name: str) -> None:
        """Small files come from here, large ones from another host."""
        content = FILES[name]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag(name)}"'}
        if not name.endswith(".safetensors"):
            return self.reply(200, content, headers)
        headers |= {"X-Linked-Etag": f'"{etag(name)}"', "X-Linked-Size": str(len(content))}
        return self.reply(302, b"", {**headers, "Location": f"http://localhost:{self.server.server_port}/cdn/{name}"})

    def download(self, name: str) -> None:
        content = FILES[name]
        if name != WEIGHTS or self.server.cut is None:
            return self.reply(200, content)
        resumed = "Range" in self.headers
        self.send_response(206 if resumed else 200)
        if self.server.cut != "without a length":
            self.send_header("Content-Length", str(len(content) // (2 if resumed else 1)))
        self.end_headers()
        if not resumed:
            self.wfile.write(content[: len(content) // 2])
        if self.server.cut == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def etag(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


def entry(name: str) -> dict[str, Any]:
    size = len(FILES[name])
    large = {"lfs": {"oid": etag(name), "size": size, "pointerSize": 134}} if name.endswith(".safetensors") else {}
    return {"type": "file", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": size, **large}


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Hub]:
    with serving() as running:
        yield running


class Download(NamedTuple):
    home: Path
    stdout: str
    stderr: str
    requests: list[str]


@pytest.fixture(scope="module")
def download(tmp_path_factory: pytest.TempPathFactory) -> Download:
    """A first download, made once."""
    home = tmp_path_factory.mktemp("home")
    with serving() as running:
        done = run(running.url, home, MODEL)
    assert done.returncode == 0, done.stdout + done.stderr
    return Download(home, done.stdout, done.stderr, running.requests)


@pytest.fixture
def home(download: Download, tmp_path: Path) -> Path:
    """A separate cache that holds the whole model."""
    return shutil.copytree(download.home, tmp_path / "home", symlinks=True)


@pytest.fixture
def nowhere() -> str:
    """An endpoint that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def run(endpoint: str, home: Path, *source: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """`resolve(source)`, or `default_source()`, with an empty cache or what earlier runs left in it."""
    meddling = ("HF_", "HUGGINGFACE", "TRANSFORMERS_", "TQDM_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(meddling)}
    env = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-c", RUN, *source]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=60)


def resolved(endpoint: str, home: Path, **env: str) -> Path:
    done = run(endpoint, home, MODEL, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.removesuffix("\n"))


def refused(endpoint: str, home: Path, source: str = MODEL, **env: str) -> str:
    """The message of the SourceError, which is one line; any other error has another exit code."""
    done = run(endpoint, home, source, **env)
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout


def write_cache(home: Path, *names: str) -> None:
    """A cache as huggingface_hub lays it out."""
    folder = home / "hub" / "models--Qwen--Qwen3-0.6B"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for name in names:
        (folder / "snapshots" / COMMIT / name).touch()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Downloads


def test_only_the_needed_files_are_downloaded(download: Download) -> None:
    folder = Path(download.stdout.removesuffix("\n"))
    assert folder.is_relative_to(download.home)
    assert contents(folder) == NEEDED
    requested = {request.rpartition(f"/{COMMIT}/")[2] for request in download.requests if "/resolve/" in request}
    assert requested == set(NEEDED)


def test_progress_goes_to_stderr(download: Download) -> None:
    assert len(download.stdout.splitlines()) == 1
    assert "100%" in download.stderr


def test_offline_the_cache_serves_without_a_request(server: Hub, home: Path) -> None:
    assert contents(resolved(server.url, home, HF_HUB_OFFLINE="1")) == NEEDED
    assert server.requests == []


def test_hub_that_went_away_leaves_the_cache_usable(nowhere: str, home: Path) -> None:
    assert contents(resolved(nowhere, home)) == NEEDED


def test_second_run_downloads_nothing(server: Hub, home: Path) -> None:
    assert contents(resolved(server.url, home)) == NEEDED
    assert [request for request in server.requests if "/api/" not in request] == []


# Refusals


@pytest.mark.parametrize("env", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["refused", "offline"])
def test_hub_out_of_reach_says_what_to_do(nowhere: str, tmp_path: Path, env: dict[str, str]) -> None:
    message = refused(nowhere, tmp_path, **env)
    assert "cannot be reached" in message
    assert f"hf download {MODEL}" in message
    assert f"there is no folder {MODEL}, and" in message


def test_hub_that_is_down_says_what_to_do(server: Hub, tmp_path: Path) -> None:
    server.refusals["/"] = (503, "")
    assert f"hf download {MODEL}" in refused(server.url, tmp_path)


@pytest.mark.parametrize("status", [401, 404])
def test_repository_that_is_not_there_is_named(server: Hub, tmp_path: Path, status: int) -> None:
    server.refusals["/"] = (status, "RepoNotFound")
    message = refused(server.url, tmp_path, "Qwen/Qwen3-0.7B")
    assert "Qwen/Qwen3-0.7B" in message
    assert "hf auth login" in message


@pytest.mark.parametrize("where", ["/api/", f"/{MODEL}/resolve/"])
def test_gated_repository_says_how_to_get_in(server: Hub, tmp_path: Path, where: str) -> None:
    server.refusals[where] = (403, "GatedRepo")
    message = refused(server.url, tmp_path)
    assert f"{MODEL} is gated" in message
    assert "terms" in message


@pytest.mark.parametrize("source", ["Qwen/Qwen3--0.6B", "Qwen/Q模型"])
def test_id_that_the_hub_cannot_have_is_refused(nowhere: str, tmp_path: Path, source: str) -> None:
    assert source in refused(nowhere, tmp_path, source)


# Broken downloads and caches


@pytest.mark.parametrize("cut", ["early", "reset", "without a length"])
def test_broken_download_is_an_error_and_leaves_no_half_file(server: Hub, tmp_path: Path, cut: str) -> None:
    server.cut = cut
    message = refused(server.url, tmp_path)
    assert MODEL in message
    assert "try again" in message
    half = FILES[WEIGHTS][: len(FILES[WEIGHTS]) // 2]
    left = contents(tmp_path)
    assert not [name for name, content in left.items() if name.endswith((WEIGHTS, ".incomplete")) or content == half]


def test_download_resumes_after_a_broken_one(server: Hub, tmp_path: Path) -> None:
    server.cut = "without a length"
    refused(server.url, tmp_path)
    server.cut = None
    assert contents(resolved(server.url, tmp_path)) == NEEDED


def test_broken_download_is_not_used_offline(server: Hub, tmp_path: Path) -> None:
    server.cut = "without a length"
    refused(server.url, tmp_path)
    assert f"hf download {MODEL}" in refused(server.url, tmp_path, HF_HUB_OFFLINE="1")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json"])
def test_incomplete_cache_is_refused_offline(nowhere: str, home: Path, name: str) -> None:
    next(home.rglob(f"snapshots/*/{name}")).unlink()
    assert MODEL in refused(nowhere, home, HF_HUB_OFFLINE="1")


@pytest.mark.parametrize(
    "names", [["config.json", "tokenizer.json"], ["config.json", "model.safetensors"], ["model.safetensors"]]
)
def test_cache_that_another_program_began_is_refused_offline(nowhere: str, tmp_path: Path, names: list[str]) -> None:
    """For example, transformers' AutoTokenizer downloads the files it needs, and no list of the other files."""
    write_cache(tmp_path, *names)
    assert MODEL in refused(nowhere, tmp_path, HF_HUB_OFFLINE="1")


# Local sources


def test_folder_is_itself(tmp_path: Path) -> None:
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert hub.resolve("~/model") == tmp_path / "model"


def test_folder_has_priority_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(MODEL).mkdir(parents=True)
    assert hub.resolve(MODEL) == Path(MODEL)


def test_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(SourceError, match=r"model\.safetensors is a file; give the folder"):
        hub.resolve(file)


def test_gguf_is_refused_with_what_to_take_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "qwen3-q4_k_m.gguf"
    file.touch()
    with pytest.raises(SourceError, match=r"is a file; GGUF cannot be read; take the bf16 release, and pack it"):
        hub.resolve(file)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(
        SourceError, match=r"Qwen/Qwen3-8B-GGUF has no config.json .*; GGUF cannot be read; take the bf16"
    ):
        hub.resolve("Qwen/Qwen3-8B-GGUF")


@pytest.mark.parametrize(
    "source", ["Qwen3-0.6B", "/no/such/folder", "./Qwen/Qwen3", "../Qwen3", "a/b/c", "Qwen/", "Qwen/Qwen3 0.6B", "-h/x"]
)
def test_source_that_is_neither_is_refused(source: str) -> None:
    with pytest.raises(SourceError, match=r"there is no folder.*such as Qwen/Qwen3-0\.6B, 'demo' or 'demo-moe'"):
        hub.resolve(source)


@pytest.mark.parametrize("source", ["", " ", "\n"])
def test_an_empty_source_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path("") is the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"SOURCE is empty; give a folder"):
        hub.resolve(source)


def test_a_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(SourceError, match=r"caf\\udce9' has bytes that are not UTF-8"):
        hub.resolve(folder)


@pytest.mark.parametrize("source", ["./qwen3-0.6b", "models/qwen3-0.6b/", "qwen3-0.6b", "~/models/qwen3-0.6b"])
def test_folders_with_a_similar_name_are_listed(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = Path(source).expanduser().parent
    for name in ("Qwen3-0.6B", "qwen3-0.6b-4bit", "photos"):
        (folder / name).mkdir(parents=True)
    (folder / "qwen3-0.6b.txt").touch()
    with pytest.raises(SourceError, match=r"there is no folder '.*' \(.* has (qwen3-0.6b-4bit|Qwen3-0.6B).*\); give"):
        hub.resolve(source)


def test_a_missing_folder_and_a_hub_id_are_distinguished(nowhere: str, tmp_path: Path) -> None:
    """models/qwen3 could be either, so the message says what is wrong with both."""
    (tmp_path / "models" / "qwen3-4bit").mkdir(parents=True)
    message = run(nowhere, tmp_path, "models/qwen3", cwd=tmp_path, HF_HUB_OFFLINE="1").stdout
    assert message.startswith(
        "there is no folder models/qwen3 (models has qwen3-4bit), and it is not in the local cache"
    )


def test_the_remedy_is_that_of_the_caller() -> None:
    with pytest.raises(SourceError, match=r"there is no folder '/nowhere'; give the folder that `convert` wrote$"):
        hub.resolve("/nowhere", "the folder that `convert` wrote")


@pytest.mark.skipif(not any(hub.DEMO.glob("*.safetensors")), reason="the demo is not trained yet")
def test_demo_is_in_the_package() -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in hub.resolve("demo").iterdir()
    }


# The default


def test_default_is_the_real_model_where_it_is_cached(nowhere: str, tmp_path: Path) -> None:
    write_cache(tmp_path, "config.json", "model.safetensors", "tokenizer.json")
    assert run(nowhere, tmp_path).stdout == f"{MODEL}\n"


@pytest.mark.parametrize("names", [[], ["config.json", "tokenizer.json"], ["config.json", "model.safetensors"]])
def test_default_is_the_demo_where_the_real_model_is_not_whole(nowhere: str, tmp_path: Path, names: list[str]) -> None:
    write_cache(tmp_path, *names)
    assert run(nowhere, tmp_path).stdout == "demo\n"


# Adapters


def test_an_adapter_is_downloaded_and_as_a_model_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def download(repository: str, files: list[str]) -> Path:
        asked.append(list(files))
        return write_peft(tmp_path / repository, ())

    monkeypatch.setattr(hub, "_download", download)
    assert hub.resolve_adapter("user/adapter") == tmp_path / "user/adapter"
    assert asked == [["adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"]]
    with pytest.raises(SourceError, match=r"user/adapter is a PEFT LoRA adapter of rank 4 .* --adapter user/adapter"):
        hub.resolve("user/adapter")
    assert "adapter_config.json" in asked[1]
    (tmp_path / "user/adapter/adapter_model.safetensors").unlink()
    monkeypatch.setattr(hub, "_download", lambda repository, files: tmp_path / repository)
    with pytest.raises(SourceError, match=r"user/adapter has no adapter_model\.safetensors on the Hub"):
        hub.resolve_adapter("user/adapter")
