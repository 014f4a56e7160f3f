"""Documents out of files: exactly what was put in, and a sentence that names the place of what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_store.errors import UsageError
from workers.documents import check_files, read_documents

# What Python's own line splitting would trip over is drawn often.
texts = st.text(
    alphabet=st.one_of(
        st.sampled_from("a \n\r\f\v\x1c\x85\u2028é😀"), st.characters(exclude_characters="\0", codec="utf-8")
    )
)
documents = texts.filter(str.strip)


def read(path: Path, column: str = "text") -> list[str]:
    return list(read_documents(path, column))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


@settings(max_examples=40)
@given(written=st.lists(documents, min_size=1))
def test_rows_and_fields_come_back_exactly(written: list[str], folder: Path) -> None:
    lines = "".join(json.dumps({"body": text, "other": 1}) + "\n" for text in written).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "a.jsonl.zst").write_bytes(pa.compress(lines, "zstd", asbytes=True))
    pq.write_table(pa.table({"body": written, "other": range(len(written))}), folder / "a.parquet")
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert read(folder / name, "body") == written


@given(
    written=st.lists(documents.filter(lambda text: "\f" not in text), min_size=1),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_line_with_a_form_feed_parts_documents(written: list[str], end: str, folder: Path) -> None:
    path = folder / "a.txt"
    path.write_bytes(f"{end}\f{end}".join(written).encode())
    assert read(path) == [text + end for text in written[:-1]] + [written[-1]]


def test_a_form_feed_inside_a_line_is_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\f\n\f two\n \f\nthree\r\n")
    assert read(path) == ["one\f\n\f two\n \f\nthree\r\n"]


def test_documents_without_text_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\f\n one\n\f\n \n\t\n\f\ntwo\n\f\n")
    (tmp_path / "a.jsonl").write_text('\n{"text": " one\\n"}\n \n{"text": ""}\n{"text": "two\\n"}')
    pq.write_table(pa.table({"text": [" one\n", None, "", "two\n"]}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        assert read(tmp_path / name) == [" one\n", "two\n"]


def test_parquet_of_many_row_groups_is_read_in_order(tmp_path: Path) -> None:
    written = [f"document {number}" for number in range(1000)]
    pq.write_table(
        pa.table({"text": pa.array(written, pa.large_string())}), tmp_path / "a.PARQUET", row_group_size=99
    )
    assert read(tmp_path / "a.PARQUET") == written


LINES = b'{"text": "one two three four"}\n' * 50
GZIP = gzip.compress(LINES, mtime=0)
ZSTD = pa.compress(LINES, "zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "a.txt holds no text"),
        ("a.txt", b" \n\f\n\t", "a.txt holds no text"),
        ("a.jsonl", b"", "a.jsonl holds no text"),
        ("a.jsonl", b'{"text": ""}\n', "a.jsonl holds no text"),
        ("a.txt", b"ab\n\f\ncd\n\f\ne\0f", "NUL byte at byte 11"),
        ("a.txt", b"ab\r\n\f\r\ncd\xff", "byte 9 is 0xff"),
        ("a.txt", "text".encode("utf-16"), "a.txt is not text: it has a NUL byte at byte 3"),
        ("a.txt", "größer".encode("latin-1"), "byte 2 is 0xf6"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', "byte 24 is 0xe9"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"text": "\xe9"}', mtime=0), "byte 24 is 0xe9"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": ', "a.jsonl:3: the line is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "a.jsonl:2: the line has no field 'text'"),
        ("a.jsonl", b'{"txt": "a"}\n', "a.jsonl:1: the line has no field 'text'"),
        ("a.jsonl", b'{"text": ["a"]}\n', "a.jsonl:1: field 'text' is ['a']; it must be a string"),
        ("a.jsonl", b'{"text": "ab\\ud800"}\n', "half a surrogate pair at character 2"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: the line is not JSON"),
        ("a.jsonl.gz", b'{"text": "a"}', "can't be read to its end"),
        ("a.jsonl.zst", b'{"text": "a"}', "can't be read to its end"),
        ("a.jsonl.zst", ZSTD[:-12], "can't be read to its end"),
        ("a.jsonl.gz", GZIP[:-12], "can't be read to its end"),
        ("a.jsonl.gz", GZIP[:20] + b"\xff" + GZIP[21:], "can't be read to its end"),
        ("a.parquet", b"", "can't be read as Parquet"),
        ("a.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "can't be read as Parquet"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_its_place(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as error:
        read(tmp_path / name)
    assert words in str(error.value)
    assert name in str(error.value)


def test_mistakes_in_a_parquet_file_name_the_column_or_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
    )
    table = pa.table({"body": pa.concat_arrays([pa.array(["fine"] * 100), broken]), "year": range(101)})
    pq.write_table(table, path)
    for column, words in [
        ("text", "has no column 'text'; its columns are body, year"),
        ("year", "'year' of .*a.parquet is of type int64"),
        ("body", "Row 100 of .*a.parquet is not UTF-8 text from its byte 1 on"),
    ]:
        with pytest.raises(UsageError, match=words):
            read(path, column)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.TXT").write_text("fine")
    (tmp_path / "a.pdf").write_text("no")
    check_files([tmp_path / "a.TXT"])
    for files, words in [
        ([], "No files were given"),
        ([tmp_path / "a.TXT", tmp_path / "b.txt"], "There is no file .*b.txt"),
        ([tmp_path], "is a folder"),
        (
            [tmp_path / "a.pdf"],
            "unknown kind; files end in one of .txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet",
        ),
        ([Path("/dev/null")], "no regular file"),
    ]:
        with pytest.raises(UsageError, match=words):
            check_files(files)
