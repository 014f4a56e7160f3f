"""The documentation: what is generated is what the code says, links lead somewhere, and the site shows every page."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.small_job import ADDRESSES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TEXTS = [*(DOCS / page for page in PAGES), *ROOT.glob("*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)\s]*)?\)")
BIN = Path(sys.executable).parent

# The tutorial's job, small enough for a test.
SMALLER = {
    "layers: 4": "layers: 2",
    "dim: 128 ": "dim: 32 ",
    "sub_keys: 128": "sub_keys: 32",
    "query_dim: 128": "query_dim: 16",
    "sequence_length: 256": "sequence_length: 64",
}


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_reference_is_what_the_code_says():
    pages = module("generate").PAGES
    assert pages.keys() == {page for page in PAGES if page.startswith("reference/")}
    stale = [
        page for page, write in pages.items() if write().rstrip("\n") + "\n" != (DOCS / page).read_text()
    ]
    assert stale == [], "run `make reference`"


def test_every_command_and_every_setting_is_in_the_reference():
    from service.job_file import describe_settings

    commands, settings = (DOCS / f"reference/{name}.md" for name in ("commands", "job"))
    help_text = subprocess.run(
        [sys.executable, "-m", "service.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in re.findall(r"^│ ([a-z]+) ", help_text, flags=re.MULTILINE):
        assert f"## pkm {name}" in commands.read_text()
    for path, _ in describe_settings():
        group, _, setting = path.rpartition(".")
        section = settings.read_text().partition(f"## {group or 'The job'}\n")[2].partition("\n## ")[0]
        assert f"| `{setting}` |" in section or f"## {path}\n" in settings.read_text(), path


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(text: Path):
    targets = [match[1] for match in LINK.finditer(text.read_text()) if "://" not in match[1]]
    assert [target for target in targets if not (text.parent / target).exists()] == []


def test_the_site_shows_every_page():
    def shown(entry: object) -> list[str]:
        if isinstance(entry, dict):
            return [page for value in entry.values() for page in shown(value)]
        return [page for below in entry for page in shown(below)] if isinstance(entry, list) else [str(entry)]

    nav = shown(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == PAGES


def test_the_figures_are_those_that_are_drawn():
    figures = module("figures")
    shown = {
        Path(target).name
        for page in PAGES
        for target in re.findall(r"figures/\S+\.\w+", (DOCS / page).read_text())
    }
    kept = {path.name for path in (DOCS / "figures").iterdir()}
    assert kept == shown
    assert figures.FIGURES.keys() < kept


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_builds(tmp_path: Path):
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [str(BIN / "zensical"), "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        html = (tmp_path / "site" / page).with_suffix(".html")
        assert "<h1" in html.read_text(), page


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_tutorial_run(tmp_path: Path):
    """Every one, in order, on a job that is smaller; a command that is renamed can't stay in the text."""
    (tmp_path / "examples" / "data").mkdir(parents=True)
    shutil.copy(ADDRESSES, tmp_path / "examples" / "data")
    job = (ROOT / "examples" / "quickstart.yaml").read_text()
    for large, small in SMALLER.items():
        assert large in job
        job = job.replace(large, small)
    (tmp_path / "examples" / "quickstart.yaml").write_text(job)
    commands = "".join(re.findall(r"```sh\n(.*?)```", (DOCS / "tutorial.md").read_text(), flags=re.DOTALL))
    commands = commands.replace("train.steps=300", "train.steps=4")
    assert commands.count("pkm ") >= 7
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "accesses.png").read_bytes().startswith(b"\x89PNG")
