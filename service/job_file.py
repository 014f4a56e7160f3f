"""A job file and `--set` overrides into a `JobSpec`, knowing where each value comes from.

The models in workers/job_spec.py are the only schema: this file knows no key by name but `data.corpus`,
whose relative path starts at the job file's folder (given with `--set`: at the current one). All
mistakes are reported at once, each on a line of its own:

    examples/job.yaml:7:3: memory.sub_kyes: unknown key; did you mean 'sub_keys'?
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from memory_store.errors import UsageError
from service.positioned_yaml import SIZE_BYTES_MAX, Location, MalformedYamlError, PositionedYaml, parse_yaml
from workers.job_spec import JobSpec

Twin = Literal["dense", "deep"]


@dataclass(frozen=True)
class LoadedJob:
    """A job, and for the dotted path of each of its values where it comes from.

    An origin is "default", "FILE:LINE", "--set" or "--twin KIND".
    """

    job: JobSpec
    origins: Mapping[str, str]


class _Source(NamedTuple):
    """Where a value was given. Sorts in reading order: the file from top to bottom, then the overrides."""

    override: int  # 0: the file; otherwise the position of the --set
    line: int
    column: int
    name: str

    def __str__(self) -> str:
        return self.name if self.override else f"{self.name}:{self.line}:{self.column}"

    @property
    def origin(self) -> str:
        return "--set" if self.override else f"{self.name}:{self.line}"


class _Mistake(NamedTuple):
    source: _Source
    sentence: str

    def __str__(self) -> str:
        return f"{self.source}: {self.sentence}"


def load_job(path: Path | str, overrides: Sequence[str] = (), twin: Twin | None = None) -> LoadedJob:
    """Read the job file at `path`, apply overrides such as "train.lr=3e-4", take a dense twin if asked for.

    Raises UsageError that lists every mistake with its place.
    """
    path = Path(path)
    parsed = _parse_file(path)
    sources = {
        location: _Source(0, place.line, place.column, str(path)) for location, place in parsed.places.items()
    }
    mistakes = [
        _Mistake(
            _Source(0, place.line, place.column, str(path)),
            f"{_dotted(location)}: this key is already in line {sources[location].line}; keep one of them",
        )
        for location, place in parsed.repeated
    ]
    if not isinstance(parsed.value, dict):
        what = "is empty" if parsed.value is None else "is not a mapping of keys to values"
        raise UsageError(
            f"{path}:1:1: this job file {what}; it needs the keys {_listed(JobSpec.model_fields)}."
        )
    settings: dict[str, Any] = parsed.value
    for position, override in enumerate(overrides, start=1):
        mistakes += _apply(override, position, settings, sources)
    _resolve_corpus(settings, sources, path)
    try:
        given = JobSpec.model_validate(settings)
        job = given.twin(twin) if twin else given
    except ValidationError as error:
        raise _refusal(mistakes + _schema_mistakes(error, sources)) from None
    if mistakes:
        raise _refusal(mistakes)
    return LoadedJob(job, _origins(given, job, sources, twin))


def describe_settings(location: Location = ()) -> Iterator[tuple[str, str]]:
    """Dotted path and description of every key that a job file may have, groups included."""
    group = _group(location)
    for name, field in group.model_fields.items() if group else ():
        yield _dotted((*location, name)), field.description or ""
        yield from describe_settings((*location, name))


def _leaves(value: object, location: Location = ()) -> Iterator[tuple[Location, object]]:
    """Every value of nested dicts that is not a dict itself, with its location."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, (*location, key))
    else:
        yield location, value


def _parse_file(path: Path) -> PositionedYaml:
    try:
        with path.open("rb") as file:
            content = file.read(SIZE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise UsageError(f"There is no job file {str(path)!r}; give the path of a YAML file.") from None
    except OSError as error:
        raise UsageError(f"The job file {str(path)!r} can't be read: {error.strerror}.") from error
    if len(content) > SIZE_BYTES_MAX:
        raise UsageError(
            f"The job file {str(path)!r} is larger than {SIZE_BYTES_MAX} bytes; is it a job file?"
        )
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}:{line}:1: this file is not UTF-8 text; a job file is YAML in UTF-8."
        ) from None
    except MalformedYamlError as error:
        raise UsageError(f"{path}:{error.place.line}:{error.place.column}: {_malformed(error)}") from None


def _malformed(error: MalformedYamlError) -> str:
    return f"this can't be read as YAML: {error.sentence}."


def _apply(
    override: str, position: int, settings: dict[str, Any], sources: dict[Location, _Source]
) -> list[_Mistake]:
    """Put one `a.b=value` into `settings` and its source into `sources`; gives the mistakes made."""
    source = _Source(position, 0, 0, f"--set {override}")
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        return [
            _Mistake(source, "write it as key=value with the dotted path of the key, such as train.lr=3e-4")
        ]
    for depth in range(len(keys)):
        group = _group(keys[:depth])
        if group is None:
            return [
                _Mistake(source, f"{_dotted(keys[:depth])} is a single value and has no key {keys[depth]!r}")
            ]
        if keys[depth] not in group.model_fields:
            unknown = keys[: depth + 1]
            return [_Mistake(source, f"{_dotted(unknown)}: {_unknown(unknown)}")]
    try:
        parsed = parse_yaml(text)
    except MalformedYamlError as error:
        return [_Mistake(source, _malformed(error))]
    target = settings
    for key in keys[:-1]:
        below = target.get(key)
        if not isinstance(below, dict):  # a group that was left out or null so far
            below = target[key] = {}
        target = below
    target[keys[-1]] = parsed.value
    for location in [location for location in sources if location[: len(keys)] == keys]:
        del sources[location]
    sources |= {(*keys, *location): source for location in parsed.places}
    return [
        _Mistake(source, f"{_dotted((*keys, *location))}: this key stands twice")
        for location, _ in parsed.repeated
    ]


def _resolve_corpus(settings: dict[str, Any], sources: Mapping[Location, _Source], path: Path) -> None:
    data = settings.get("data")
    if isinstance(data, dict) and isinstance(data.get("corpus"), str):
        beside = Path() if sources["data", "corpus"].override else path.parent
        data["corpus"] = os.path.abspath(beside / Path(data["corpus"]).expanduser())


def _refusal(mistakes: list[_Mistake]) -> UsageError:
    return UsageError("\n".join(str(mistake) for mistake in sorted(mistakes)))


def _origins(
    given: JobSpec, job: JobSpec, sources: Mapping[Location, _Source], twin: Twin | None
) -> dict[str, str]:
    before_twin = dict(_leaves(given.model_dump()))
    origins: dict[str, str] = {}
    for location, value in _leaves(job.model_dump()):
        if before_twin.get(location, given) != value:
            origins[_dotted(location)] = f"--twin {twin}"
        else:
            origins[_dotted(location)] = sources[location].origin if location in sources else "default"
    return origins


def _schema_mistakes(error: ValidationError, sources: Mapping[Location, _Source]) -> list[_Mistake]:
    mistakes = []
    for details in error.errors(include_url=False):
        if details["type"] == "default_factory_not_called":  # follows from another mistake
            continue
        written = details["loc"]
        while written not in sources:  # something missing: the innermost group round it that was written down
            written = written[:-1]
        mistakes.append(_Mistake(sources[written], f"{_dotted(details['loc'])}: {_explain(details)}"))
    return mistakes


def _group(location: Location) -> type[BaseModel] | None:
    """The model whose keys stand at `location`; None where there is a single value, or nothing."""
    group: type[BaseModel] = JobSpec
    for key in location:
        field = group.model_fields.get(str(key))
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not models:
            return None
        group = models[0]
    return group


def _explain(details: ErrorDetails) -> str:
    """One of pydantic's errors as a sentence that names the value, what is allowed, and what to do."""
    kind, location, value, message = details["type"], details["loc"], details["input"], details["msg"]
    if kind == "impossible":
        return message
    if kind == "extra_forbidden":
        return _unknown(location)
    if kind == "missing" and isinstance(location[-1], str):
        return f"this key is missing ({_wanted(location)})"
    if kind in ("model_type", "model_attributes_type"):
        return f"must be a group of keys, not {_shown(value)} ({_wanted(location)})"
    if kind == "tuple_type":
        return f"must be a list such as [1, 2], not {_shown(value)}"
    if kind == "missing":
        return "this value of the list is missing"
    must, found, allowed = message.partition("Input should be ")
    if found and not must:
        return f"must be {allowed}, not {_shown(value)}"
    return f"{_shown(value)} is not allowed: {message[0].lower()}{message[1:]} ({_wanted(location)})"


def _unknown(location: Location) -> str:
    *groups, key = location
    group = _group(tuple(groups))
    known = list(group.model_fields) if group else []
    elsewhere = [path for path, _ in describe_settings() if path.rpartition(".")[2] == key]
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    if elsewhere or close:
        return f"unknown key; did you mean {' or '.join(repr(name) for name in elsewhere or close)}?"
    return f"unknown key; known here are {_listed(known)}"


def _wanted(location: Location) -> str:
    """What belongs at `location`: the keys of a group, or the description of a value."""
    group = _group(location)
    if group is not None:
        required = [name for name, field in group.model_fields.items() if field.is_required()]
        return f"it needs {_listed(required)}" if required else f"its keys are {_listed(group.model_fields)}"
    above = _group(location[:-1])
    field = above.model_fields.get(str(location[-1])) if above else None
    return field.description.rstrip(".") if field and field.description else "see `pkm config schema`"


def _dotted(location: Location) -> str:
    """('memory', 'layers', 0) as memory.layers[0]."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(names)


def _shown(value: object) -> str:
    """A value as a job file writes it, shortened."""
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else None
    text = text or repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
