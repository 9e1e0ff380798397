"""Texts of tokens, including tokens that are only a part of a character.

If several tokens make up a character, the character is the text of the last of these tokens. The texts of the others
are empty. Without a tokenizer, the text of a token is its id.
"""

import codecs
import re
from collections.abc import Iterable
from functools import cache

import numpy as np
from tokenizers import Tokenizer, decoders

from pipeline.data.safe_tokenizers import tokenizer_errors
from pipeline.labels.retokenize import BYTE_LEVEL

MOST_CHARACTERS = 1000  # limit for a token's text, because a vocabulary may contain any string
SINGLE_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenTexts:
    """Texts of one tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._bytes_of = cache(self._token_bytes)
        self.cut = False
        """True if a text was longer than MOST_CHARACTERS and was therefore truncated."""

    def of(self, ids: Iterable[int]) -> list[str]:
        """Return one text for each token of a document: the characters that the token completes.

        Long texts are truncated. If no text is truncated, the joined texts are the document's text, with U+FFFD for
        bytes that are not UTF-8.
        """
        if self._tokenizer is None:
            return [f"⟨{token}⟩" for token in ids]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [self._short(decoder.decode(self._bytes_of(token))) for token in ids]

    def alone(self, token: int) -> str:
        """Return the text of a single token, or the bytes of a token that is a part of a character, as in ⟨E2 80⟩."""
        if self._tokenizer is None:
            return f"⟨{token}⟩"
        try:
            return self._short(self._bytes_of(token).decode())
        except UnicodeDecodeError:
            return self._short(f"⟨{self._bytes_of(token).hex(' ').upper()}⟩")

    def byte_count(self, tokens_N: np.ndarray) -> int | None:
        """Return the total number of bytes in the texts of these tokens; None without a tokenizer."""
        if self._tokenizer is None:
            return None
        ids, counts = np.unique(tokens_N, return_counts=True)
        sizes = np.array([len(self._bytes_of(token)) for token in ids.tolist()], np.int64)
        return int(sizes @ counts)

    def _short(self, text: str) -> str:
        if len(text) <= MOST_CHARACTERS:
            return text
        self.cut = True
        return f"{text[:MOST_CHARACTERS]}…"

    def _token_bytes(self, token: int) -> bytes:
        assert self._tokenizer is not None
        name = self._tokenizer.id_to_token(token) or ""
        if token in self._tokenizer.get_added_tokens_decoder():
            return name.encode()
        if isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            return b"".join(BYTE_LEVEL.get(character, character.encode()) for character in name)
        if byte := SINGLE_BYTE.fullmatch(name):
            return bytes.fromhex(byte[1])
        # Decoders strip the space before the first token, not before the second.
        with tokenizer_errors(f"the tokenizer cannot tell the text of token {token}; take another copy of it"):
            once, twice = (self._tokenizer.decode([token] * times, skip_special_tokens=False) for times in (1, 2))
        return twice[len(once) :].encode()
