"""Writes docs/reference/ from the code: the commands, the settings of a job, and the Python API.

    python docs/generate.py

Nothing there is typed by hand; a test compares it with what this writes.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

import memory_store
import service.client
import workers.memory_layer
from service.cli import app

DOCS = Path(__file__).resolve().parent
GENERATED = "<!-- Written by docs/generate.py; change the code instead. -->\n"
PYTHON_API: dict[str, list[Any]] = {
    "service.client": [service.client.Client, service.client.JobDetails, service.client.JobUpdate],
    "memory_store": [getattr(memory_store, name) for name in memory_store.__all__],
    "workers.memory_layer": [workers.memory_layer.MemoryLayer],
}


def commands() -> str:
    """docs/reference/commands.md: every command with its arguments and options."""
    parts = ["# Commands\n", GENERATED, f"{inspect.getdoc(service.cli)}\n"]
    for words, command in _leaves(typer.main.get_command(app), ("pkm",)):
        parts.append(f"## {' '.join(words)}\n\n{_unwrapped(command.help or '')}\n")
        rows = [_parameter_row(parameter) for parameter in command.params if parameter.name != "help"]
        parts.append(_table(("argument or option", "what it is", "default"), rows))
        if command.epilog:
            parts.append(f"```\n{command.epilog.removeprefix('Example: ')}\n```\n")
    return "\n".join(parts)


def job_settings() -> str:
    """docs/reference/job.md: every setting of a job file."""
    schema = json.loads((DOCS / "job.schema.json").read_text(encoding="utf-8"))
    said = "Every setting of a job file; editors read the same from [job.schema.json](../job.schema.json)."
    parts = ["# Settings of a job\n", GENERATED, f"{said}\n"]
    for group, name in (("", schema), *_groups(schema, "")):
        parts.append(f"## {group or 'The job'}\n\n{name['description']}\n")
        rows = [
            (f"`{setting}`", _type(found), _default(found, setting in name.get("required", [])), _said(found))
            for setting, found in name["properties"].items()
            if _reference(found) is None
        ]
        parts.append(_table(("setting", "allowed", "default", "what it is"), rows))
    return "\n".join(parts)


def python_api() -> str:
    """docs/reference/python.md: what programs import."""
    parts = ["# Python\n", GENERATED]
    for module, members in PYTHON_API.items():
        said = inspect.getdoc(inspect.importlib.import_module(module))  # type: ignore[attr-defined]
        parts.append(f"## {module}\n\n{_prose(said or '')}\n")
        parts += [_described(member, module) for member in members]
    return "\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/job.md": job_settings,
    "reference/python.md": python_api,
}


def _leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, below in command.commands.items():
        yield from _leaves(below, (*words, name))


def _parameter_row(parameter: Any) -> tuple[str, str, str]:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
    else:
        name = ", ".join((*parameter.opts, *parameter.secondary_opts))
        if not parameter.is_flag:
            name += f" {parameter.metavar or 'VALUE'}"
    shown = (
        parameter.default is not None and parameter.default is not False and not callable(parameter.default)
    )
    return f"`{name}`", _unwrapped(parameter.help or ""), f"`{parameter.default}`" if shown else ""


def _groups(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The groups of settings with their dotted names, each before those in it."""
    definitions = schema["$defs"]

    def below(group: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, found in group["properties"].items():
            if (target := _reference(found)) is not None:
                inner = f"{path}.{name}".strip(".")
                yield inner, definitions[target]
                yield from below(definitions[target], inner)

    yield from below(schema, path)


def _reference(found: dict[str, Any]) -> str | None:
    for choice in (found, *found.get("anyOf", ())):
        if "$ref" in choice:
            return str(choice["$ref"]).rpartition("/")[2]
    return None


def _type(found: dict[str, Any]) -> str:
    if "anyOf" in found:
        return " or ".join(map(_type, found["anyOf"]))
    if "enum" in found:
        return ", ".join(f"`{choice}`" for choice in found["enum"])
    if "const" in found:
        return f"`{found['const']}`"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = " and ".join(f"{sign} {found[name]}" for name, sign in bounds.items() if name in found)
    return f"{found.get('type', 'any')} {limits}".strip()


def _default(found: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    return f"`{json.dumps(found['default'])}`" if "default" in found else ""


def _said(found: dict[str, Any]) -> str:
    return _unwrapped(found.get("description", ""))


def _described(member: Any, module: str) -> str:
    """A class, function or type alias with what its docstring says, and a class's public methods."""
    name = getattr(member, "__name__", "")
    if not name or not (inspect.isclass(member) or inspect.isfunction(member)):
        return f"### {next(key for key in memory_store.__all__ if getattr(memory_store, key) is member)}\n\n`{member}`\n"
    parts = [
        f"### {name}\n",
        f"```python\n{name}{_signature(member)}\n```\n",
        f"{_prose(inspect.getdoc(member) or '')}\n",
    ]
    if inspect.isclass(member) and not issubclass(member, Exception):
        for called, method in vars(member).items():
            if inspect.isfunction(method) and not called.startswith("_") and inspect.getdoc(method):
                said = _prose(inspect.getdoc(method) or "")
                parts.append(
                    f"#### {name}.{called}\n\n```python\n{called}{_signature(method)}\n```\n\n{said}\n"
                )
    return "\n".join(parts)


def _signature(member: Any) -> str:
    if inspect.isclass(member) and issubclass(member, Exception):
        return "(message)"
    signature = re.sub(r"'([^']+)'(?=[,)\] ]|$)", r"\1", str(inspect.signature(member)))
    return re.sub(r"<function .* at 0x\w+>", "...", signature)  # a default that has no name


def _prose(said: str) -> str:
    """A docstring as Markdown: indented examples become code, the rest stays."""
    blocks = []
    for block in said.split("\n\n"):
        lines = block.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            blocks.append("```\n" + textwrap.dedent(block) + "\n```")
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def _unwrapped(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [heads, tuple("---" for _ in heads), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Write every page."""
    for name, write in PAGES.items():
        page = DOCS / name
        page.parent.mkdir(exist_ok=True)
        page.write_text(write().rstrip("\n") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
