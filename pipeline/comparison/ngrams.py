"""Surprisals of an n-gram model, as labels that depend only on counts.

The model interpolates all orders by the method of Witten and Bell. Each context leaves a share of the probability to
the context that is one token shorter. This share grows with the number of distinct tokens that have followed the
context. The empty context leaves its share to the uniform distribution over the vocabulary.

Documents are cross-fitted: the counts for a document come from the documents of all other folds.

Shapes: N tokens of a document.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.data.corpus import Corpus, fold_of

Context = tuple[int, ...]
BEFORE = -1  # stands before the first token of a document


class NgramModel:
    """Counts of the tokens that follow each context of up to `order - 1` tokens."""

    def __init__(self, documents: Iterable[np.ndarray], order: int, vocabulary: int) -> None:
        self.order, self.vocabulary = order, vocabulary
        self.following: defaultdict[Context, Counter[int]] = defaultdict(Counter)
        for tokens_N in documents:
            for context, token in _contexts(tokens_N, order):
                for length in range(order):
                    self.following[context[order - 1 - length :]][token] += 1

    def surprisals(self, tokens_N: np.ndarray) -> np.ndarray:
        """Return -ln p(token | the `order - 1` tokens before it) in nats, float32 [N]."""
        return np.array(
            [-np.log(self.probability(token, context)) for context, token in _contexts(tokens_N, self.order)],
            dtype=np.float32,
        )

    def probability(self, token: int, context: Context) -> float:
        """Return p(token | context), which is above 0 for every token of the vocabulary."""
        probability = 1 / self.vocabulary
        for length in range(self.order):
            seen = self.following.get(context[self.order - 1 - length :])
            if seen is None:
                break
            probability = (seen[token] + len(seen) * probability) / (seen.total() + len(seen))
        return probability


def cross_fitted_surprisals(corpus: Corpus, order: int, vocabulary: int, folds: int) -> np.ndarray:
    """Return the surprisals of all tokens of a corpus in nats, float32 [N].

    Each document is predicted by counts of the documents in the other folds.

    Raises:
        ValueError: if a fold has no document.
    """
    others = [part.by_document(part.tokens_N) for part in corpus.leave_one_fold_out(folds)]
    models = [NgramModel(documents, order, vocabulary) for documents in others]
    documents = corpus.by_document(corpus.tokens_N)
    return np.concatenate(
        [np.empty(0, np.float32), *(models[fold_of(each, folds)].surprisals(each) for each in documents)]
    )


def _contexts(tokens_N: np.ndarray, order: int) -> Sequence[tuple[Context, int]]:
    tokens = [*[BEFORE] * (order - 1), *tokens_N.tolist()]
    return [(tuple(tokens[at - order + 1 : at]), tokens[at]) for at in range(order - 1, len(tokens))]
