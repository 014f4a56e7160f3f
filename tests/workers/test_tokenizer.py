"""The tokenizer: nothing is lost, pieces change nothing, and the number of cores changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from memory_store.errors import UsageError
from workers.documents import read_documents
from workers.tokenizer import (
    END_OF_TEXT,
    END_OF_TEXT_ID,
    encode_pieces,
    load_tokenizer,
    marked_pieces,
    pieces,
    train_tokenizer,
)

ROOT = Path(__file__).parents[2]
ADDRESSES = ROOT / "examples" / "data" / "sotu.parquet"
WHITESPACE = "".join(map(chr, [9, 10, 11, 12, 13, 28, 29, 30, 31, 32, 0x85, 0xA0, 0x200B, 0x2028, 0x3000]))

texts = st.text(
    alphabet=st.one_of(st.sampled_from("ab1.'" + WHITESPACE), st.characters(codec="utf-8")), min_size=1
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    addresses = list(read_documents(ADDRESSES, "text"))[:5]
    # Merges of punctuation, digits, whitespace and contractions must have a chance to go wrong.
    return train_tokenizer(
        [*addresses, "a. b\n\n  c's 11\t\t 1.. ..a  a\x1c.\x1c a\xa0\xa0 b \n \n" * 50], 700
    )


@given(written=st.lists(texts))
@example(written=[END_OF_TEXT, f"a{END_OF_TEXT}b", "\0"])
def test_texts_come_back_exactly_each_with_its_end(written: list[str], tokenizer: Tokenizer) -> None:
    tokens = np.concatenate([np.zeros(0, np.uint32), *encode_pieces(tokenizer, marked_pieces(written))])
    ends = np.flatnonzero(tokens == END_OF_TEXT_ID)
    parts = np.split(tokens, ends + 1)
    assert parts.pop().size == 0
    assert [tokenizer.decode(part[:-1].tolist(), skip_special_tokens=False) for part in parts] == written


@given(text=texts, length=st.integers(1, 5))
@example(text="a \n b  \x1c c\x1c. .\x1c d", length=1)
def test_pieces_have_the_tokens_of_the_whole(text: str, length: int, tokenizer: Tokenizer) -> None:
    cut = list(pieces(text, length))
    assert "".join(cut) == text
    assert all(cut)
    assert [token for piece in cut for token in tokenizer.encode(piece).ids] == tokenizer.encode(text).ids


def test_a_long_text_is_cut_into_short_pieces() -> None:
    text = next(read_documents(ADDRESSES, "text")) * 10
    assert max(map(len, pieces(text, 1000))) < 1050
    assert len(list(pieces(text, 1000))) > 10


def test_training_on_a_long_text_is_training_on_its_pieces() -> None:
    text = next(read_documents(ADDRESSES, "text")) * 3
    whole, parts = train_tokenizer([text], 400), train_tokenizer(pieces(text, 10), 400)
    assert whole.to_str() == parts.to_str()


def test_a_saved_tokenizer_still_takes_the_end_of_text_spelt_out_for_text(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    loaded = load_tokenizer(path)
    assert END_OF_TEXT_ID not in loaded.encode(END_OF_TEXT).ids
    assert loaded.decode(loaded.encode(END_OF_TEXT).ids) == END_OF_TEXT
    assert loaded.token_to_id(END_OF_TEXT) == END_OF_TEXT_ID
    path.write_text(tokenizer.to_str()[:-5], encoding="utf-8")
    with pytest.raises(ValueError, match="no tokenizer"):
        load_tokenizer(path)


def test_other_processes_with_other_parallelism_learn_and_encode_the_same() -> None:
    program = (
        "import hashlib, itertools, pathlib, sys; from workers.documents import read_documents;"
        "from workers.tokenizer import encode_pieces, marked_pieces, train_tokenizer;"
        "texts = list(itertools.islice(read_documents(pathlib.Path(sys.argv[1]), 'text'), 8));"
        "tokenizer = train_tokenizer(texts, 600);"
        "tokens = b''.join(block.tobytes() for block in encode_pieces(tokenizer, marked_pieces(texts)));"
        "print(hashlib.sha256(tokenizer.to_str().encode() + tokens).hexdigest())"
    )
    digests = {
        subprocess.check_output(
            [sys.executable, "-c", program, str(ADDRESSES)], cwd=ROOT, env={**os.environ, **settings}
        )
        for settings in (
            {"TOKENIZERS_PARALLELISM": "false"},
            {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "3"},
        )
    }
    assert len(digests) == 1


@pytest.mark.parametrize("size", [-1, 0, 256, 257])
def test_a_vocabulary_without_a_merge_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"vocabulary of {size} tokens is too small.*need 258"):
        train_tokenizer(["aa aa aa"], size)


def test_a_vocabulary_that_the_text_cannot_fill_is_refused_and_the_one_reached_is_not() -> None:
    text = "abc abc abd abd"  # merges: a+b (4 times), space+ab (3), space ab+d (2); all else comes once
    with pytest.raises(UsageError, match="enough for a vocabulary of 260 tokens, not of 261"):
        train_tokenizer([text], 261)
    assert train_tokenizer([text], 260).get_vocab_size() == 260
    with pytest.raises(UsageError, match="enough for a vocabulary of 257 tokens"):
        train_tokenizer([], 300)
