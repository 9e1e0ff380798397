"""Text that reads like a control token stays text: `<s>` in a page of HTML is three characters, not a beginning.

`encode_special_tokens` keeps a tokenizer from searching text for its special tokens. In models whose vocabulary has
them as pieces, too (Unigram, WordPiece, WordLevel), text still arrives at their ids, and at those of the byte tokens
`<0x0A>` that stand for characters without a piece. Their text is cut behind its first character, which no such piece
survives; other text is encoded as before.
"""

import re
from collections import defaultdict

from tokenizers import Regex, Tokenizer, pre_tokenizers

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


def keep_text(tokenizer: Tokenizer) -> None:
    """Changes a tokenizer, if it must, so that no text is encoded as a control token."""
    if readable := readable_from_text(tokenizer):
        cut = pre_tokenizers.Split(Regex(_first_characters(readable)), "isolated")
        before = [tokenizer.pre_tokenizer] if tokenizer.pre_tokenizer else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, cut])


def readable_from_text(tokenizer: Tokenizer) -> list[str]:
    """The control tokens, special ones and those of bytes, whose own text the tokenizer encodes as them."""
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    named = [token for token in (*special, *BYTE_TOKENS) if tokenizer.token_to_id(token) is not None]
    return [token for token in dict.fromkeys(named) if _is_read(tokenizer, token)]


def _is_read(tokenizer: Tokenizer, token: str) -> bool:
    """Alone, as a word or within one; more often than without it, as it may stand for unknown characters there."""
    token_id = tokenizer.token_to_id(token)
    places = (token, f"a {token} b", f"a{token}b")
    found = tokenizer.encode_batch_fast([*places, *(place.replace(token, "") for place in places)], False)
    own = [sum(read == token_id for read in encoding.ids) for encoding in found]
    return any(with_it > without for with_it, without in zip(own[:3], own[3:], strict=True))


def _first_characters(tokens: list[str]) -> str:
    """A pattern of the first characters of tokens where the others follow."""
    rest = defaultdict(list)
    for token in tokens:
        rest[token[0]].append(re.escape(token[1:]))
    return "|".join(f"{re.escape(first)}(?=(?:{'|'.join(others)}))" for first, others in rest.items())
