"""YAML text into plain values, with the line and column of each of them.

A job file comes from anyone, so it is bounded (size, depth) and may hold only what a job needs: anchors,
aliases and tags are refused, repeated keys are reported. Plain scalars follow the core schema of YAML
1.2, where `3e-4` is a number and `no` a word; PyYAML's own rules are those of YAML 1.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import yaml

SIZE_BYTES_MAX = 1 << 20
DEPTH_MAX = 20

Location = tuple[str | int, ...]
"""The keys and list positions that lead to a value, from the outside in."""


class Place(NamedTuple):
    """Line and column, both counted from 1."""

    line: int
    column: int


class MalformedYamlError(Exception):
    """The text can't be read as YAML at all. `place` says from where on."""

    def __init__(self, place: Place, sentence: str) -> None:
        super().__init__(sentence)
        self.place = place
        self.sentence = sentence


@dataclass
class PositionedYaml:
    """The value of a YAML text: dicts, lists, str, int, float, bool and None.

    places: of every value below a key the place of its key, of a list's values their own.
    repeated: keys that stand twice in one mapping, with the place of the second.
    """

    value: object = None
    places: dict[Location, Place] = field(default_factory=dict)
    repeated: list[tuple[Location, Place]] = field(default_factory=list)


def parse_yaml(text: str) -> PositionedYaml:
    """Read one YAML document; an empty text gives None. Raises MalformedYamlError at what can't be read."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        sentence = ", ".join(part for part in (error.context, error.problem) if part)
        if "'\\t'" in sentence:
            sentence += " (a tab; indent with spaces)"
        raise MalformedYamlError(place, sentence) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, error.position - before.rfind("\n"))
        raise MalformedYamlError(place, f"character U+{ord(text[error.position]):04X} is not text") from error
    parsed = PositionedYaml(places={(): _place(node) if node else Place(1, 1)})
    parsed.value = _value(node, (), parsed) if node else None
    return parsed


class _Loader(yaml.SafeLoader):
    """Composes nodes only; nothing is ever constructed from a tag."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way to leave the rules of YAML 1.1
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        refused = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            refused = (
                "anchors (&) and aliases (*) are not allowed here; write the value out, or put it in quotes"
            )
        elif getattr(event, "tag", None) is not None:
            refused = f"tag {event.tag!r} is not allowed here; leave it out, or put the value in quotes"
        elif self.depth == DEPTH_MAX:
            refused = f"values are nested more than {DEPTH_MAX} deep"
        if refused:
            raise yaml.MarkedYAMLError(problem=refused, problem_mark=event.start_mark)  # pyright: ignore[reportArgumentType]
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _tag, _pattern in {
    "null": r"(~|null|Null|NULL|)$",
    "bool": r"(true|True|TRUE|false|False|FALSE)$",
    "int": r"[-+]?[0-9]{1,40}$",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), None)


def _value(node: yaml.Node, location: Location, parsed: PositionedYaml) -> object:
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            # A list or a group can't be a key: its text makes an unknown key, reported with its place.
            scalar = isinstance(key_node, yaml.ScalarNode)
            key = key_node.value if scalar else str(_value(key_node, (), PositionedYaml()))
            below = (*location, key)
            if key in mapping:
                parsed.repeated.append((below, _place(key_node)))
            else:
                parsed.places[below] = _place(key_node)
                mapping[key] = _value(value_node, below, parsed)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            parsed.places[(*location, position)] = _place(item)
        return [_value(item, (*location, position), parsed) for position, item in enumerate(node.value)]
    return _scalar(node.tag.rpartition(":")[2], node.value)


def _scalar(kind: str, text: str) -> object:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)
