"""Reading YAML with places: what was written is read back, and hostile text is refused."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service.positioned_yaml import DEPTH_MAX, MalformedYamlError, Place, parse_yaml

words = st.text(alphabet="abcxyz_-:# '\"\\\n\t0123456789.e+~", max_size=8)
scalars = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | words
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
)


@given(values)
def test_what_json_writes_is_read_back(value: object):
    """JSON is YAML 1.2; PyYAML's dump would quote by the rules of YAML 1.1 instead."""
    assert parse_yaml(json.dumps(value)).value == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_read_back_in_every_notation(number: float):
    for text in (repr(number), f"{number:.17e}", yaml.safe_dump(number).splitlines()[0]):
        assert parse_yaml(text).value == number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("+.5", 0.5),
        ("5.", 5.0),
        (".inf", float("inf")),
        ("-7", -7),
        ("010", 10),
        ("1_000", "1_000"),
        ("no", "no"),
        ("True", True),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
        (".", "."),
        ("9" * 41, 1e41),  # whole numbers that long are slow to convert, and no setting of ours
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object):
    read = parse_yaml(text).value
    assert read == value
    assert type(read) is type(value)


def test_places_point_at_keys_and_at_list_items():
    parsed = parse_yaml("a: 1\nb:\n  c: {d: [5,\n    6]}\n")
    assert parsed.value == {"a": 1, "b": {"c": {"d": [5, 6]}}}
    assert parsed.places == {
        (): Place(1, 1),
        ("a",): Place(1, 1),
        ("b",): Place(2, 1),
        ("b", "c"): Place(3, 3),
        ("b", "c", "d"): Place(3, 7),
        ("b", "c", "d", 0): Place(3, 11),
        ("b", "c", "d", 1): Place(4, 5),
    }


def test_repeated_keys_keep_the_first_value_and_are_reported():
    parsed = parse_yaml("a: {b: 1}\na: {b: 2}\nc: {d: 1, d: 2}")
    assert parsed.value == {"a": {"b": 1}, "c": {"d": 1}}
    assert parsed.repeated == [(("a",), Place(2, 1)), (("c", "d"), Place(3, 11))]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: &x 1\nb: 2", Place(1, 4), "anchors"),
        ("a: 1\nb: *x", Place(2, 4), "aliases"),
        ("a: !!python/object/apply:os.system [id]", Place(1, 4), "tag"),
        ("a: !!int 3", Place(1, 4), "tag"),
        ("a: 1\n\tb: 2", Place(2, 1), "tab"),
        ("a: [1, 2\nb: 3", Place(2, 2), "flow sequence"),
        ("a: b: c", Place(1, 5), "mapping values"),
        ("a: 'open", Place(1, 9), "quoted scalar"),
        ("a: 1\n---\nb: 2", Place(2, 1), "document"),
        ("a: 1\nb: \x00", Place(2, 4), "U+0000"),
        ("\x07", Place(1, 1), "U+0007"),
        ("[" * (DEPTH_MAX + 1), Place(1, DEPTH_MAX + 1), "nested"),
        ("[" * 100_000, Place(1, DEPTH_MAX + 1), "nested"),
    ],
)
def test_what_is_refused_is_refused_with_its_place(text: str, place: Place, words: str):
    with pytest.raises(MalformedYamlError) as raised:
        parse_yaml(text)
    assert raised.value.place == place
    assert words in raised.value.sentence


def test_nesting_up_to_the_limit_is_read():
    parsed = parse_yaml("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    assert str(parsed.value) == "[" * DEPTH_MAX + "]" * DEPTH_MAX
