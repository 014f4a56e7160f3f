"""`pkm ui`: which page it opens, and that the token is in nobody else's sight on the way there."""

from __future__ import annotations

import stat
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app

TOKEN = "t0ken-7a"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PKM_FOLDER", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("PKM_PROFILE", "")
    for name in ("PKM_SERVER", "PKM_TOKEN_FILE", "PKM_CERTIFICATE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return tmp_path


def pkm(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="pkm", env={"COLUMNS": "200", "NO_COLOR": "1"})


def profile(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "profile.yaml").write_text(text)
    monkeypatch.setenv("PKM_PROFILE", str(folder / "profile.yaml"))


def test_the_address_is_that_of_the_service_that_is_meant(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(*arguments: str) -> str:
        result = pkm("ui", "--no-browser", *arguments)
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    assert printed() == f"http://127.0.0.1:7071/#token={TOKEN}"
    (folder / "page").write_text("http://127.0.0.1:45678\n")
    assert printed() == f"http://127.0.0.1:45678/#token={TOKEN}"
    assert printed("--server", "pkm.example.org:7070") == f"https://pkm.example.org:7071/#token={TOKEN}"
    assert printed("--server", "[2001:db8::1]:7070") == f"https://[2001:db8::1]:7071/#token={TOKEN}"
    profile(folder, monkeypatch, "server: a.example.org:1\npage: https://b.example.org/\n")
    assert printed() == f"https://b.example.org/#token={TOKEN}"


def test_a_browser_gets_the_name_of_a_file_that_only_its_owner_reads(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def open_(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", open_)
    (folder / "page").write_text("http://127.0.0.1:45678\n")
    door = folder / "open-page.html"
    door.write_text("an old one")
    door.chmod(0o644)
    result = pkm("ui")
    assert result.exit_code == 0
    assert opened == [door.as_uri()]
    assert TOKEN not in result.output + opened[0]
    assert stat.S_IMODE(door.stat().st_mode) == 0o600
    assert f"url=http://127.0.0.1:45678/#token={TOKEN}" in door.read_text()


def test_without_a_browser_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    result = pkm("ui")
    assert "pkm ui --no-browser" in result.stderr


def test_without_a_token_it_says_so(folder: Path) -> None:
    (folder / "token").unlink()
    result = pkm("ui")
    assert result.exit_code == 2
    assert "Is `pkm serve` running?" in result.stderr
