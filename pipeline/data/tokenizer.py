"""Tokenizers: loaded from the `tokenizer.json` of any fast Hugging Face tokenizer, or trained here.

Special tokens are never added to text and never recognized in it. For example, the characters `<|endoftext|>` in a
document are encoded as ordinary text.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.data.encoding import encode_column
from pipeline.data.own_files import own_file, read_bounded, read_object
from pipeline.data.safe_tokenizers import keep_text, require_bounded, tokenizer_errors, without_dropout

SEPARATOR = "<|endoftext|>"
"""Special token of tokenizers that are trained here; its id is 0."""
BYTES = 256
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
MOST_BYTES = 2**28  # size of a tokenizer.json; one with 260,000 tokens has 35 MB
TOKENIZED_ALREADY = "none"


def train_byte_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer, which can encode every string and decode it back.

    Raises:
        ValueError: if the vocabulary has no room for the bytes and the separator.
    """
    if vocabulary <= BYTES:
        raise ValueError(f"`vocabulary` must be above {BYTES}, to hold the bytes and the separator, not {vocabulary}")
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
    """Load the tokenizer in `folder`.

    Raises:
        ValueError: if the folder has no readable `tokenizer.json`, or the tokenizer may need too much memory or time.
    """
    file = own_file(folder, TOKENIZER_FILE)
    if file is None:
        raise ValueError(f"{folder} has no {TOKENIZER_FILE}; name a folder that has one with `tokenizer`")
    content = read_bounded(file, MOST_BYTES)
    try:
        with tokenizer_errors("it cannot be loaded"):
            tokenizer = Tokenizer.from_buffer(content)
    except ValueError as error:
        raise ValueError(f"{file} is not a tokenizer: {error}; name another folder with `tokenizer`") from error
    require_bounded(tokenizer, file)
    without_dropout(tokenizer, file)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with tokenizer_errors(f"{file} does not encode its own tokens"):
        keep_text(tokenizer)
    return tokenizer


def id_count(tokenizer: Tokenizer) -> int:
    """Return the number of rows that a model's embedding needs: the highest token id + 1.

    A tokenizer may skip ids, for example if tokens were removed, or added at round numbers. `get_vocab_size()` counts
    only the tokens. In an embedding of that size, the highest ids would have no row.
    """
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """Return one int32 array of token ids per text, without special tokens."""
    return encode_column(tokenizer, pa.array(texts, pa.large_string()))


def tokenizer_sha256(folder: Path, name: str = TOKENIZER_FILE) -> str | None:
    """Return the sha256 of a tokenizer's file in a folder, or None if there is no such file.

    `name` is TOKENIZER_FILE, which determines all token ids, or CONFIG_FILE.
    """
    file = own_file(folder, name)
    return None if file is None else hashlib.sha256(read_bounded(file, MOST_BYTES)).hexdigest()


def encoding_sha256(folder: Path) -> str:
    """Return a digest of the parts of a folder's tokenizer that determine token ids.

    Tokenizers whose files differ only in their layout, or in parts such as the decoder, have the same digest.

    Raises:
        ValueError: as `load_tokenizer`.
    """
    content = json.loads(load_tokenizer(folder).to_str())
    parts = {name: content.get(name) for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TokenSource:
    """Source of token ids: a tokenizer and its folder, which are both None if documents are already tokenized."""

    vocabulary: int
    tokenizer: Tokenizer | None = None
    folder: Path | None = None

    @cached_property
    def sha256(self) -> str | None:
        """Digest of the tokenizer's file; None without a tokenizer."""
        return None if self.folder is None else tokenizer_sha256(self.folder)


def token_source(tokenizer: str, vocabulary: int | None) -> TokenSource:
    """Return the source named by `--tokenizer DIR` or `--tokenizer none --vocabulary N`.

    Raises:
        ValueError: if `none` comes without a vocabulary, or `vocabulary` differs from the tokenizer's.
    """
    if tokenizer == TOKENIZED_ALREADY:
        if vocabulary is None or vocabulary < 1:
            raise ValueError("`tokenizer` none needs `vocabulary` N, the number of token ids in use")
        return TokenSource(vocabulary)
    loaded = load_tokenizer(Path(tokenizer))
    ids = id_count(loaded)
    if vocabulary not in (None, ids):
        raise ValueError(f"`vocabulary` {vocabulary} differs from the {ids} ids of {tokenizer}; leave it out")
    return TokenSource(ids, loaded, Path(tokenizer))


def declared_beginning(folder: Path) -> int | None:
    """Return the id of the token that a folder's tokenizer declares for the beginning of a document.

    This is the beginning-of-sequence token or, if that is missing, the end-of-sequence token. Return None if the folder
    has no tokenizer configuration, or if neither token is declared.
    """
    file = own_file(folder, CONFIG_FILE)
    declared = {} if file is None else read_object(file)
    for name in ("bos_token", "eos_token"):
        token = declared.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if not isinstance(content, str | None):
            raise ValueError(f"{file}: {name} is not the text of a token; fix it, or name another checkpoint")
        if content and (token_id := load_tokenizer(folder).token_to_id(content)) is not None:
            return token_id
    return None


def named_token(folder: Path, text: str) -> int:
    """Return the id of the token that `--start-token` names.

    Raises:
        ValueError: if the folder's tokenizer has no such token.
    """
    token_id = load_tokenizer(folder).token_to_id(text)
    if token_id is None:
        raise ValueError(f"`start_token` {text} is not a token of {folder}; name one of its tokenizer")
    return token_id


def beginning_token(folder: Path) -> int:
    """Return the id of the token that precedes each document when a language model is trained.

    Raises:
        ValueError: if the tokenizer declares neither a beginning nor an end of sequence.
    """
    declared = declared_beginning(folder)
    if declared is None:
        message = f"the tokenizer in {folder} declares neither bos_token nor eos_token to put between documents"
        raise ValueError(f"{message}; declare one in its {CONFIG_FILE}")
    return declared
