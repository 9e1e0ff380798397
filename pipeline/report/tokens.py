"""What a reader sees of a token: its text, though it may be a part of a character.

A character that several tokens make up is the text of the last of them, the others have none. Without a tokenizer a
token is seen as its id.
"""

import codecs
import re
from collections.abc import Iterable
from functools import cache

from tokenizers import Tokenizer, decoders

from pipeline.data.safe_tokenizers import tokenizer_errors
from pipeline.labels.retokenize import BYTE_LEVEL

MOST_CHARACTERS = 1000  # of a token; a vocabulary may have any string
SINGLE_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenTexts:
    """Texts of the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._bytes_of = cache(self._token_bytes)
        self.cut = False
        """True if a token's text was longer than MOST_CHARACTERS and was cut short."""

    def of(self, ids: Iterable[int]) -> list[str]:
        """The text that each token completes; together they are the document's, U+FFFD where it is not UTF-8.

        Long ones are cut short.
        """
        if self._tokenizer is None:
            return [f"⟨{token}⟩" for token in ids]
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [self._short(decoder.decode(self._bytes_of(token))) for token in ids]

    def alone(self, token: int) -> str:
        """The text of a token by itself, a part of a character as its bytes: ⟨E2 80⟩."""
        if self._tokenizer is None:
            return f"⟨{token}⟩"
        try:
            return self._short(self._bytes_of(token).decode())
        except UnicodeDecodeError:
            return self._short(f"⟨{self._bytes_of(token).hex(' ').upper()}⟩")

    def _short(self, text: str) -> str:
        if len(text) <= MOST_CHARACTERS:
            return text
        self.cut = True
        return f"{text[:MOST_CHARACTERS]}…"

    def _token_bytes(self, token: int) -> bytes:
        assert self._tokenizer is not None
        named = self._tokenizer.id_to_token(token) or ""
        if token in self._tokenizer.get_added_tokens_decoder():
            return named.encode()
        if isinstance(self._tokenizer.decoder, decoders.ByteLevel):
            return b"".join(BYTE_LEVEL.get(character, character.encode()) for character in named)
        if byte := SINGLE_BYTE.fullmatch(named):
            return bytes.fromhex(byte[1])
        # Decoders cut the space before the first token, not the one before the second.
        with tokenizer_errors(f"the tokenizer cannot tell the text of token {token}; take another copy of it"):
            once, twice = (self._tokenizer.decode([token] * times, skip_special_tokens=False) for times in (1, 2))
        return twice[len(once) :].encode()
