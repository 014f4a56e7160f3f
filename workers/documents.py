"""Documents out of text files, one after the other in the order of the files.

A document is read exactly as it stands in its file; nothing but whitespace is no document. At most one
document, or one small batch of Parquet rows, is in memory at a time, so files may be larger than memory.
Whatever is wrong with a file is a UsageError that names the file and the place in it.

  .txt               UTF-8; a line with only a form feed ends a document, so without one the file is one
  .jsonl, .jsonl.gz, .jsonl.zst
                     one JSON object a line, the document in the field `text_column`
  .parquet           one document a row, in the column `text_column`
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from memory_store.errors import UsageError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_PARQUET_ROWS_AT_ONCE = 64
_UNPACKED_AT_ONCE = 1 << 20


def check_files(files: Sequence[Path]) -> None:
    """Raise UsageError unless every file is there and is of a kind that can be read."""
    if not files:
        raise UsageError("No files were given; give at least one file of text.")
    for path in files:
        if path.is_dir():
            raise UsageError(f"{path} is a folder; give the files in it.")
        if not path.exists():
            raise UsageError(f"There is no file {path}.")
        if not path.is_file():
            raise UsageError(
                f"{path} is no regular file, and text is read more than once; write it to a file."
            )
        if not path.name.lower().endswith(SUFFIXES):
            raise UsageError(f"{path} is of an unknown kind; files end in one of {', '.join(SUFFIXES)}.")


def read_documents(path: Path, text_column: str) -> Iterator[str]:
    """Yield the documents of one file. Raises UsageError if it has none or can't be understood."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        texts = _parquet_rows(path, text_column)
    elif name.endswith(".txt"):
        texts = _form_feed_parts(path)
    else:
        texts = _json_fields(path, text_column)
    empty = True
    for text in texts:
        if text.strip():
            empty = False
            yield text
    if empty:
        raise UsageError(f"{path} holds no text.")


def _form_feed_parts(path: Path) -> Iterator[str]:
    begin, lines = 0, list[bytes]()
    with open(path, "rb") as file:
        for line in file:
            if line.rstrip(b"\r\n") == b"\f":
                document = b"".join(lines)
                yield _decode(document, path, begin)
                begin += len(document) + len(line)
                lines.clear()
            else:
                lines.append(line)
    yield _decode(b"".join(lines), path, begin)


def _json_fields(path: Path, field: str) -> Iterator[str]:
    begin = 0
    for number, line in enumerate(_lines(path), start=1):
        content = _decode(line, path, begin)
        begin += len(line)
        if content.strip():
            yield _json_field(content, field, f"{path}:{number}")


def _lines(path: Path) -> Iterator[bytes]:
    name = path.name.lower()
    try:
        with open(path, "rb") as file:
            if name.endswith(".gz"):
                yield from gzip.GzipFile(fileobj=file)
            elif name.endswith(".zst"):
                yield from io.BufferedReader(pa.CompressedInputStream(file, "zstd"), _UNPACKED_AT_ONCE)
            else:
                yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} can't be read to its end: {error}.") from None


def _json_field(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: the line is not JSON: {error}.") from None
    if not isinstance(record, dict) or field not in record:
        raise UsageError(
            f"{where}: the line has no field {field!r}; every line must be a JSON object with its text there."
        )
    text = record[field]
    if not isinstance(text, str):
        raise UsageError(f"{where}: field {field!r} is {text!r:.40}; it must be a string.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where}: field {field!r} has half a surrogate pair at character {error.start}; that is no text."
        ) from None
    return text


def _parquet_rows(path: Path, column: str) -> Iterator[str]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            _check_column(path, file.schema_arrow, column)
            rows = 0
            for batch in file.iter_batches(_PARQUET_ROWS_AT_ONCE, columns=[column]):
                yield from _strings(batch.column(0), path, rows)
                rows += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} can't be read as Parquet: {error}.") from None


def _check_column(path: Path, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise UsageError(
            f"{path} has no column {column!r}; its columns are {', '.join(schema.names)}. Use --text-column."
        )
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UsageError(
            f"Column {column!r} of {path} is of type {kind}; it must be string. Use --text-column."
        )


def _strings(values: Iterable[pa.Scalar], path: Path, first_row: int) -> Iterator[str]:
    for row, value in enumerate(values, start=first_row):
        try:
            yield value.as_py() or ""
        except UnicodeDecodeError as error:
            raise UsageError(
                f"Row {row} of {path} is not UTF-8 text from its byte {error.start} on."
            ) from None


def _decode(content: bytes, path: Path, begin: int) -> str:
    """Text of bytes that begin at byte `begin` of a file (of what it unpacks to, if it is compressed)."""
    nul = content.find(b"\0")
    if nul >= 0:
        raise UsageError(f"{path} is not text: it has a NUL byte at byte {begin + nul}; give UTF-8 text.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text: byte {begin + error.start} is 0x{content[error.start]:02x}; convert "
            "it to UTF-8, for example with iconv."
        ) from None
