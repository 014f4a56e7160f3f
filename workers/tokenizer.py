"""The byte-level byte-pair tokenizer: trained on the corpus, it loses nothing of any text.

Byte-pair encoding (Sennrich et al. 2016) on bytes (Radford et al. 2019) by the `tokenizers` library: token 0
ends a document, 256 tokens are the bytes, the others are merges. Decoding gives every text back exactly, and
no text encodes to token 0, not even one that spells it out. Text goes in in pieces, cut only where the
tokenizer would cut anyway: a long document takes little more memory than a short one, uses all cores, and has
the tokens that it would have in one piece. The result depends on the text alone, not on the number of cores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from memory_store.errors import UsageError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
VOCABULARY_MIN = 256 + 1 + 1
"""The bytes, the end of text, and one merge at least: without any it is no byte-pair tokenizer."""

_MERGE_COUNT_MIN = 2
_PIECE_CHARACTERS = 8192
_PIECES_AT_ONCE = 256

# A word of the pre-tokenizer may begin with whitespace but has none after another character, so here one
# always ends. (To Python a few control characters are whitespace that are not to it; never the reverse.)
_WORD_END = re.compile(r"(?<=\S)(?=[ \n])")


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """Learn a tokenizer with exactly `vocabulary_size` tokens.

    Raises UsageError if the size leaves no room for a merge, or if too little in the text repeats.
    """
    check_vocabulary_size(vocabulary_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=_MERGE_COUNT_MIN,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    reached = tokenizer.get_vocab_size()
    if reached < vocabulary_size:
        raise UsageError(
            f"The training text is enough for a vocabulary of {reached} tokens, not of {vocabulary_size}; "
            f"give more text or a smaller --vocab-size (at least {VOCABULARY_MIN})."
        )
    return _ready(tokenizer)


def check_vocabulary_size(vocabulary_size: int) -> None:
    """Raise UsageError for a size that no text can reach."""
    if vocabulary_size < VOCABULARY_MIN:
        raise UsageError(
            f"A vocabulary of {vocabulary_size} tokens is too small: 256 bytes, the end of text and one "
            f"merge need {VOCABULARY_MIN}; use a larger --vocab-size."
        )


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer.json. Raises ValueError if it is none."""
    try:
        return _ready(Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"it is no tokenizer ({error})") from None


def marked_pieces(texts: Iterable[str]) -> Iterator[str]:
    """The pieces of all texts, in order, and an empty one after each text; no piece of a text is empty."""
    return (piece for text in texts for piece in (*pieces(text), ""))


def encode_pieces(tokenizer: Tokenizer, marked: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
    """Yield the tokens of marked pieces, an end of text for each empty one, as arrays [T] of some length T."""
    marked = iter(marked)
    while batch := list(islice(marked, _PIECES_AT_ONCE)):
        tokens: list[int] = []
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            tokens += encoding.ids or [END_OF_TEXT_ID]
        yield np.array(tokens, dtype=np.uint32)


def pieces(text: str, length: int = _PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text at the first end of a word after every `length` characters."""
    begin = 0
    while end := _WORD_END.search(text, begin + length):
        yield text[begin : end.start()]
        begin = end.start()
    yield text[begin:]


def _ready(tokenizer: Tokenizer) -> Tokenizer:
    # Text that spells out the end-of-text token is text. The file can't hold this setting.
    tokenizer.encode_special_tokens = True
    return tokenizer
