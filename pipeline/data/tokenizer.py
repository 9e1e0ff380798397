"""Text to token ids, with the `tokenizer.json` that every fast Hugging Face tokenizer carries.

Annotation never adds special tokens and never reads any: a document that contains the characters
`<|endoftext|>` has them encoded as ordinary text.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.data.control_tokens import keep_text
from pipeline.data.encoding import encode_column

SEPARATOR = "<|endoftext|>"
"""Of a tokenizer of our own; it has id 0."""
BYTES = 256
TOKENIZER_FILE = "tokenizer.json"
TOKENIZED_ALREADY = "none"


def train_byte_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer: every string has an encoding, and decoding gives it back.

    Raises:
        ValueError: if the vocabulary has no room for the bytes and the separator.
    """
    if vocabulary <= BYTES:
        raise ValueError(f"--vocabulary must be above {BYTES}, the bytes and the separator, not {vocabulary}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer kept in `folder`.

    Raises:
        ValueError: if the folder has no readable `tokenizer.json`.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        raise ValueError(f"{folder} has no {TOKENIZER_FILE}; name a folder that has one with --tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for a malformed file
        raise ValueError(f"{file} is not a tokenizer: {error}; name another folder with --tokenizer") from error
    tokenizer.encode_special_tokens = True
    keep_text(tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def id_count(tokenizer: Tokenizer) -> int:
    """Rows that a model's embedding needs: the highest token id + 1.

    A tokenizer may leave ids out, as where tokens were removed or added at round numbers; `get_vocab_size()` counts
    the tokens, and the highest ids would have no row.
    """
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, int32, without special tokens."""
    return encode_column(tokenizer, pa.array(texts, pa.large_string()))


def tokenizer_sha256(folder: Path) -> str | None:
    """Digest of the file that decides every token id; None for a folder without one."""
    file = folder / TOKENIZER_FILE
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


@dataclass(frozen=True)
class TokenSource:
    """Where token ids come from: a tokenizer and its folder, or neither for documents tokenized already."""

    vocabulary: int
    tokenizer: Tokenizer | None = None
    folder: Path | None = None


def token_source(tokenizer: str, vocabulary: int | None) -> TokenSource:
    """What `--tokenizer DIR` or `--tokenizer none --vocabulary N` means.

    Raises:
        ValueError: if `none` comes without a vocabulary, or the vocabulary is not the tokenizer's.
    """
    if tokenizer == TOKENIZED_ALREADY:
        if vocabulary is None or vocabulary < 1:
            raise ValueError("--tokenizer none needs --vocabulary N, the number of token ids in use")
        return TokenSource(vocabulary)
    loaded = load_tokenizer(Path(tokenizer))
    ids = id_count(loaded)
    if vocabulary not in (None, ids):
        raise ValueError(f"--vocabulary {vocabulary} is not the {ids} of {tokenizer}; leave it out")
    return TokenSource(ids, loaded, Path(tokenizer))


def declared_beginning(folder: Path) -> int | None:
    """Id of the token that stands before a document: what the tokenizer declares as beginning, or else end, of
    sequence; None if it declares neither, or there is no tokenizer."""
    file = folder / "tokenizer_config.json"
    declared = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in ("bos_token", "eos_token"):
        token = declared.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if content and (found := load_tokenizer(folder).token_to_id(content)) is not None:
            return found
    return None


def named_token(folder: Path, text: str) -> int:
    """Id of the token that a --start-token names.

    Raises:
        ValueError: if the folder's tokenizer has no such token.
    """
    found = load_tokenizer(folder).token_to_id(text)
    if found is None:
        raise ValueError(f"--start-token {text} is no token of {folder}; name one that its tokenizer has")
    return found


def beginning_token(folder: Path) -> int:
    """Id of the token that stands before a document when a language model is trained.

    Raises:
        ValueError: if the tokenizer declares neither a beginning nor an end of sequence.
    """
    declared = declared_beginning(folder)
    if declared is None:
        raise ValueError(f"the tokenizer in {folder} declares no bos_token and no eos_token to put between documents")
    return declared
