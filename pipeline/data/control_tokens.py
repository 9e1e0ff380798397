"""Text that reads like a control token stays text: `<s>` in a page of HTML is three characters, not a beginning.

`encode_special_tokens` keeps a tokenizer from searching text for its special tokens. In models whose vocabulary has
them as pieces, too (Unigram, WordPiece, WordLevel), text still arrives at their ids, and at those of the byte tokens
`<0x0A>` that stand for characters without a piece. Their text is cut behind its first character, which no such piece
survives; other text is encoded as before.
"""

import re
from collections import defaultdict
from collections.abc import Iterable

from tokenizers import Encoding, Regex, Tokenizer, pre_tokenizers

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
PLACES = ("{}", "a {} b", "a{}b")


def keep_text(tokenizer: Tokenizer) -> None:
    """Changes a tokenizer, if it must, so that no text is encoded as a control token."""
    if readable := readable_from_text(tokenizer):
        cut = pre_tokenizers.Split(Regex(_first_characters(readable)), "isolated")
        before = [tokenizer.pre_tokenizer] if tokenizer.pre_tokenizer else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, cut])


def readable_from_text(tokenizer: Tokenizer) -> list[str]:
    """The control tokens, special ones and those of bytes, whose own text the tokenizer encodes as them.

    Alone, as a word or within one; more often than without it, as it may stand for unknown characters there.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special and token.content]
    ids = {token: tokenizer.token_to_id(token) for token in (*special, *BYTE_TOKENS)}
    known = {token: token_id for token, token_id in ids.items() if token_id is not None}
    without = [each.ids for each in _encoded(tokenizer, [""])]
    found = iter(_encoded(tokenizer, known))
    reads = {token: [next(found).ids.count(known[token]) for _ in PLACES] for token in known}
    return [
        token
        for token, counts in reads.items()
        if any(count > ids.count(known[token]) for count, ids in zip(counts, without, strict=True))
    ]


def _encoded(tokenizer: Tokenizer, tokens: Iterable[str]) -> list[Encoding]:
    """Each of the tokens' texts in all places, one after the other."""
    texts = [place.format(token) for token in tokens for place in PLACES]
    return tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def _first_characters(tokens: list[str]) -> str:
    """A pattern of the first characters of tokens where the others follow."""
    rest = defaultdict(list)
    for token in tokens:
        rest[token[0]].append(re.escape(token[1:]))
    return "|".join(f"{re.escape(first)}(?=(?:{'|'.join(others)}))" for first, others in rest.items())
