import hashlib
import re
import tomllib
from pathlib import Path

from serving import serving

from mlx_qwen3.server.settings import PAGE

ROOT = Path(__file__).parents[2]


def test_the_page_and_its_files(tmp_path):
    (tmp_path / "index.html").write_text("<title>chat</title>")
    (tmp_path / "chat.js").write_text("1")
    (tmp_path.parent / "secret.txt").write_text("secret")
    with serving(page=tmp_path, api_key="k") as served:
        assert served.ask("/") == (200, "<title>chat</title>")
        assert served.ask("/page/chat.js") == (200, "1")
        assert served.ask("/page/../secret.txt")[0] == 404
        assert served.ask("/page/%2e%2e/secret.txt")[0] == 404


def test_without_a_page_there_is_none(tmp_path):
    with serving(page=tmp_path) as served:
        assert served.ask("/")[0] == 404


def test_nothing_from_outside_is_allowed(demo):
    for path in ("/", "/page/app.js"):
        response = demo.open("GET", path)
        response.read()
        policy = response.headers["content-security-policy"]
        response.connection.close()
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "//" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"


def test_files_are_of_the_types_that_browsers_want(demo):
    for name, kind in {"app.js": "javascript", "style.css": "text/css", "icon.svg": "image/svg+xml"}.items():
        response = demo.open("GET", f"/page/{name}")
        response.read()
        response.connection.close()
        assert kind in response.headers["content-type"]


def test_every_file_is_part_of_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    listed = {path for pattern in patterns["mlx_qwen3.server"] for path in PAGE.parent.glob(pattern)}
    assert {path for path in PAGE.rglob("*") if path.is_file()} <= listed


def test_the_libraries_are_those_of_their_releases():
    """The README of the folder has the version, licence and checksum of each."""
    folder = PAGE / "vendor"
    told = dict(re.findall(r"`(\w+\.js)`.*`([0-9a-f]{64})`", (folder / "README.md").read_text()))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")}
    assert files == told
    assert {path.name for path in folder.glob("LICENSE-*")} == {f"LICENSE-{Path(name).stem}" for name in files}
