"""Predictions moved to other tokens, compared with sums in dictionaries and with the tokenizers' own encodings.

S source tokens, T target tokens, K ids stored per token.
"""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.labels.moved_predictions import UNKNOWN, first_tokens, is_byte_level, move_predictions
from pipeline.labels.retokenize import encode_with_ends
from schemas.annotations import LEAST_REST, NO_PROBABILITY, REST_LOGPROB, TOP_IDS, TOP_LOGPROBS
from tests.labels.test_retokenize import BUILDERS, TEXTS, tokenizer_of
from tests.smollm2 import INSTALLED, smollm2_folder


def predictions(count: int, ids: int, kept: int, seed: int) -> dict[str, np.ndarray]:
    """Return the `kept` most probable of `ids` ids for each of `count` tokens, with random probabilities."""
    random = np.random.default_rng(seed)
    p_SV = random.dirichlet(np.full(ids, 0.2), count)
    top_SK = np.argsort(-p_SV, axis=1)[:, :kept]
    p_SK = np.take_along_axis(p_SV, top_SK, 1) + 1e-30
    rest_S = np.log(np.maximum(1 - p_SK.sum(axis=1), LEAST_REST))
    columns = {TOP_IDS: top_SK.T, TOP_LOGPROBS: np.log(p_SK).T, REST_LOGPROB: rest_S}
    return {name: values.astype(np.float32) for name, values in columns.items()}


def slowly_moved(column_ids: np.ndarray, logprobs: np.ndarray, first_V: np.ndarray) -> dict[int, float]:
    """Return the sum of the probabilities of each target token, for the prediction of one source token."""
    sums = defaultdict[int, float](float)
    for index, logprob in zip(column_ids.astype(int), logprobs, strict=True):
        known = index < len(first_V) and first_V[index] != UNKNOWN
        if known:
            sums[int(first_V[index])] += float(np.exp(np.float64(logprob)))
    return sums


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    firsts=st.lists(st.integers(UNKNOWN, 5), min_size=1, max_size=8),
    kept=st.integers(1, 6),
    data=st.data(),
)
def test_the_probabilities_of_ids_are_summed_by_their_first_tokens(
    lengths: list[int], firsts: list[int], kept: int, data: st.DataObject
) -> None:
    """Some ids are beyond the source's tokens, and a source token is unlabelled."""
    ends_S = np.cumsum(lengths).astype(float)
    cuts = data.draw(st.sets(st.integers(1, max(1, int(ends_S[-1])))))
    ends_T = np.array(sorted({cut for cut in cuts if cut <= ends_S[-1]} | {int(ends_S[-1])}), dtype=float)
    columns, first_V = predictions(len(lengths), 9, kept, len(firsts)), np.array(firsts, np.int32)
    unlabelled = data.draw(st.integers(0, len(lengths) - 1))
    for values in columns.values():
        values[..., unlabelled] = np.nan
    moved = move_predictions(columns, ends_S, ends_T, first_V)
    assert all(values.dtype == np.float32 for values in moved.values())
    begins_S = [0.0, *ends_S[:-1]]
    for place, begin in enumerate([0.0, *ends_T[:-1]]):
        holders = [index for index, own in enumerate(begins_S) if own == begin]
        sums = dict[int, float]()
        if holders and holders[-1] != unlabelled:
            sums = slowly_moved(columns[TOP_IDS][:, holders[-1]], columns[TOP_LOGPROBS][:, holders[-1]], first_V)
        ids_K, logprobs_K = moved[TOP_IDS][:, place], moved[TOP_LOGPROBS][:, place]
        if not sums:
            assert np.isnan([*ids_K, *logprobs_K, moved[REST_LOGPROB][place]]).all()
            continue
        filled = logprobs_K > NO_PROBABILITY
        assert (np.diff(logprobs_K) <= 0).all() and (ids_K[~filled] == ids_K[0]).all()
        found = dict(zip(ids_K[filled].astype(int).tolist(), np.exp(logprobs_K[filled]).tolist(), strict=True))
        assert found == pytest.approx(sums, rel=1e-5)
        assert np.exp(moved[REST_LOGPROB][place]) == pytest.approx(max(1 - sum(sums.values()), LEAST_REST), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_tokens_of_the_same_tokenizer_keep_their_predictions(text: str) -> None:
    own = tokenizer_of("shipped")
    ((ids_S, ends_S),) = encode_with_ends(own, [text])
    first_V = first_tokens(own, own)
    columns = predictions(len(ids_S), 5, 5, 0)
    columns[TOP_IDS] += 300  # five tokens of two letters, each of which is its own first token
    moved = move_predictions(columns, ends_S, ends_S, first_V)
    for name in columns:
        np.testing.assert_allclose(moved[name], columns[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["shipped", "byte-level"])
def test_first_tokens_are_those_of_the_encoded_text(target: str) -> None:
    source = tokenizer_of("shipped")
    first_V, other = first_tokens(source, tokenizer_of(target)), tokenizer_of(target)
    assert len(first_V) == source.get_vocab_size()
    for word in (" the", "the", " international", "\n", ".", "é"):
        (ids_T,) = encode(source, [word])
        if len(ids_T) == 1:
            assert first_V[ids_T[0]] == encode(other, [word])[0][0]
    assert first_V[source.token_to_id("<|endoftext|>")] == UNKNOWN
    assert first_V[source.token_to_id("Ġ")] == UNKNOWN, "most texts that follow are joined with a space"
    assert first_V[source.token_to_id("Ã")] == UNKNOWN, "half a character"


def test_byte_level_tokenizers_without_a_space_before_the_text_are_told_apart() -> None:
    assert {name for name in BUILDERS if is_byte_level(tokenizer_of(name))} == {"shipped", "byte-level"}
    characters = Tokenizer(WordLevel({"a": 0, "b": 1, " ": 2, "é": 3}, unk_token="a"))
    characters.pre_tokenizer = Split("", "isolated")
    assert characters.encode("a b é").tokens == [*"a b é"] and not is_byte_level(characters)


@pytest.mark.skipif(not INSTALLED, reason="`make pretrained` was not run")
def test_smollm2_lacks_tokens_for_rare_bytes_and_is_byte_level() -> None:
    assert is_byte_level(load_tokenizer(smollm2_folder()))


def test_documents_without_tokens_have_no_predictions() -> None:
    none, columns = np.empty(0), predictions(0, 5, 3, 0)
    assert [move_predictions(columns, none, none, np.zeros(5, np.int32))[name].shape for name in columns] == [
        (3, 0),
        (3, 0),
        (0,),
    ]
