"""Transfer of predictions to the tokens of another tokenizer: probabilities of ids are summed by the ids' first tokens.

A source token's text is encoded with the target's tokenizer, and the source token's probability is given to the first
token of this encoding. A target token has a prediction only if it begins where a source token begins, because inside of
a source token the model has made no prediction.

The result is approximate for two reasons. The source stores only its K most probable ids. The probability of all other
ids is missing from the sums, and counts as the rest. And the target may join the end of a source token with the text
that follows. It nearly always does so with a single space, whose probability therefore counts as the rest, too.

S tokens of the source, T tokens of the target, A tokens of the target with a prediction, K ids stored per token, V ids
of the source.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer

from pipeline.labels.retokenize import bytes_of_token, encode_with_ends
from schemas.annotations import LEAST_REST, NO_PROBABILITY, PREDICTED, REST_LOGPROB, TOP_IDS, TOP_LOGPROBS

UNKNOWN = -1
SPACE = b" "
PROBE = "a b é"  # a space and two bytes for a character, which other tokenizers write in another way


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """True if tokens stand for the bytes of a text, and no space is added before the text.

    Tokens for bytes that are rare in text may be missing, as in SmolLM2's tokenizer.
    """
    tokens = tokenizer.encode(PROBE, add_special_tokens=False).tokens
    return b"".join(map(bytes_of_token, tokens)) == PROBE.encode()


def first_tokens(source: Tokenizer, target: Tokenizer) -> np.ndarray:
    """Return the first token of the target in the text of each token of the source, int32 [V].

    The value is UNKNOWN for special tokens, for a single space, for bytes that are not valid UTF-8, and for ids without
    a token. Both tokenizers must be byte-level.
    """
    special = source.get_added_tokens_decoder()
    texts = dict[int, str]()
    for token, index in source.get_vocab(with_added_tokens=False).items():
        own = bytes_of_token(token)
        if index not in special and own != SPACE and (text := _decoded(own)):
            texts[index] = text
    first_V = np.full(max(texts, default=-1) + 1, UNKNOWN, np.int32)
    encoded = encode_with_ends(target, [*texts.values()])
    first_V[[*texts]] = [tokens.ids_T[0] if len(tokens.ids_T) else UNKNOWN for tokens in encoded]
    return first_V


def moved_predictions(
    labels: Mapping[str, Sequence[np.ndarray]], ends: Iterable[tuple[np.ndarray, np.ndarray]], first_V: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """Return the columns PREDICTED of documents for the tokens of the target, an array per document.

    The arguments are those of `move_predictions`, with an element for each document.
    """
    columns = (
        dict(zip(PREDICTED, arrays, strict=True)) for arrays in zip(*map(labels.__getitem__, PREDICTED), strict=True)
    )
    documents = [move_predictions(each, *pair, first_V) for each, pair in zip(columns, ends, strict=True)]
    return {name: [document[name] for document in documents] for name in PREDICTED}


def move_predictions(
    columns: Mapping[str, np.ndarray], ends_S: np.ndarray, ends_T: np.ndarray, first_V: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the columns `top_ids` and `top_logprobs` [K, T] and `rest_logprob` [T] for the tokens of the target.

    `columns` has the same columns for the source's tokens. Values are float32, with NaN for tokens without a
    prediction. If fewer than K tokens have a probability, the most probable id fills the free places, with the
    log-probability NO_PROBABILITY.

    Args:
        ends_S, ends_T: bytes where the tokens of the source and of the target end.
        first_V: result of `first_tokens`.
    """
    ids_KS, logprobs_KS = columns[TOP_IDS], columns[TOP_LOGPROBS]
    moved_KT, moved_logprobs_KT = (np.full((len(ids_KS), len(ends_T)), np.nan, np.float32) for _ in range(2))
    rest_T = np.full(len(ends_T), np.nan, np.float32)
    holder_A, at_A = _beginning_together(ends_S, ends_T)
    labelled_A = ~np.isnan(ids_KS[0, holder_A])
    holder_A, at_A = holder_A[labelled_A], at_A[labelled_A]
    known_V = np.append(first_V, UNKNOWN)  # ids beyond the source's tokens, as in a padded head
    ids_AK = known_V[np.minimum(ids_KS[:, holder_A].T.astype(np.int64), len(first_V))]
    ids_AK, p_AK = _summed(ids_AK, np.exp(logprobs_KS[:, holder_A].T.astype(np.float64)))
    some_A = p_AK[:, 0] > 0
    ids_AK, p_AK, at_A = ids_AK[some_A], p_AK[some_A], at_A[some_A]
    moved_KT[:, at_A] = np.where(p_AK > 0, ids_AK, ids_AK[:, :1]).T
    moved_logprobs_KT[:, at_A] = np.log(p_AK, where=p_AK > 0, out=np.full_like(p_AK, NO_PROBABILITY)).T
    rest_T[at_A] = np.log(np.maximum(1 - p_AK.sum(axis=1), LEAST_REST))
    return {TOP_IDS: moved_KT, TOP_LOGPROBS: moved_logprobs_KT, REST_LOGPROB: rest_T}


def _beginning_together(ends_S: np.ndarray, ends_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of source tokens and of target tokens that begin at the same byte, [A] each."""
    begin_S, begin_T = (np.concatenate([[0.0], ends[:-1]]) if len(ends) else ends for ends in (ends_S, ends_T))
    # A token without bytes begins where the token after it begins, which is the one that predicts.
    holder_T = np.searchsorted(begin_S, begin_T, side="right") - 1
    at_A = np.flatnonzero((holder_T >= 0) & (begin_S[holder_T] == begin_T)) if len(begin_S) else np.empty(0, np.int64)
    return holder_T[at_A], at_A


def _summed(ids_AK: np.ndarray, p_AK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the probabilities of equal ids in each row. Return distinct ids and sums [A, K], most probable first.

    Places that are left over have the probability 0, and so has the id UNKNOWN.
    """
    order_AK = np.argsort(ids_AK, axis=1, kind="stable")
    ids_AK, p_AK = np.take_along_axis(ids_AK, order_AK, 1), np.take_along_axis(p_AK, order_AK, 1)
    last_AK = np.diff(ids_AK, axis=1, append=-2) != 0  # last place of each id
    total_AK = np.cumsum(p_AK, axis=1)
    reached_AK = np.maximum.accumulate(np.where(last_AK, total_AK, 0), axis=1)
    before_AK = np.concatenate([np.zeros_like(reached_AK[:, :1]), reached_AK[:, :-1]], axis=1)
    sum_AK = np.where(last_AK & (ids_AK != UNKNOWN), total_AK - before_AK, 0)
    order_AK = np.argsort(-sum_AK, axis=1, kind="stable")
    return np.take_along_axis(ids_AK, order_AK, 1), np.take_along_axis(sum_AK, order_AK, 1)


def _decoded(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None
