"""Random sources of known entropy, documents drawn from them with true values per token, and settings of contests.

This module does not import torch, because its settings become command-line flags and `--help` must start fast.

Shapes: M documents, T tokens per document, V symbols, H hidden states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class KnownSource(Protocol):
    """A random source of tokens whose next-token distribution is known.

    The source's state summarises the previous tokens of M documents that are drawn together.
    """

    @property
    def vocabulary(self) -> int: ...

    def begin(self, documents: int) -> np.ndarray:
        """Return the state [M, ...] before the first token."""

    def predict(self, state: np.ndarray) -> np.ndarray:
        """Return the distribution [M, V] of each document's next token."""

    def advance(self, state: np.ndarray, tokens_M: np.ndarray) -> np.ndarray:
        """Return the state after one more token of each document."""


class Drawn(NamedTuple):
    """Documents with their true surprisal `-ln p(x[i] | x[:i])` and entropy `H(X[i] | x[:i])`, in nats."""

    tokens_MT: np.ndarray
    surprisal_MT: np.ndarray
    entropy_MT: np.ndarray


def draw(source: KnownSource, documents: int, tokens: int, random: np.random.Generator) -> Drawn:
    """Draw documents of `tokens` tokens each, with every token's true surprisal and entropy."""
    state = source.begin(documents)
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for _ in range(tokens):
        probabilities_MV = source.predict(state)
        threshold_M1 = random.random((documents, 1)) * probabilities_MV.sum(axis=1, keepdims=True)
        drawn_M = (probabilities_MV.cumsum(axis=1) > threshold_M1).argmax(axis=1)
        surprisal_M = -np.log(np.take_along_axis(probabilities_MV, drawn_M[:, None], axis=1)[:, 0])
        columns.append((drawn_M, surprisal_M, shannon_entropy(probabilities_MV)))
        state = source.advance(state, drawn_M)
    return Drawn(*(np.stack(column, axis=1) for column in zip(*columns, strict=True)))


def shannon_entropy(probabilities_MV: np.ndarray) -> np.ndarray:
    """Return `-sum p ln p` of each row, in nats."""
    logarithms_MV = np.log(probabilities_MV, where=probabilities_MV > 0, out=np.zeros_like(probabilities_MV))
    entropy_M: np.ndarray = -(probabilities_MV * logarithms_MV).sum(axis=1)
    return entropy_M


@dataclass(frozen=True)
class MarkovChain:
    """A Markov chain of order K: the next symbol depends on the last K symbols.

    The source's state [M] is the index of each document's context: its last K symbols, read as a number in base V. Row
    `r` of the table is the distribution of the symbol after the context with index `r`.
    """

    table: np.ndarray

    @property
    def vocabulary(self) -> int:
        return int(self.table.shape[1])

    def begin(self, documents: int) -> np.ndarray:
        """Return the index of the context in which all K symbols are 0, for every document."""
        return np.zeros(documents, dtype=np.int64)

    def predict(self, state: np.ndarray) -> np.ndarray:
        rows_MV: np.ndarray = self.table[state]
        return rows_MV

    def advance(self, state: np.ndarray, tokens_M: np.ndarray) -> np.ndarray:
        following: np.ndarray = (state * self.vocabulary + tokens_M) % len(self.table)
        return following


@dataclass(frozen=True)
class HiddenMarkov:
    """A hidden Markov model.

    The source's state is the distribution [M, H] of the hidden state given the previous tokens, computed by the forward
    algorithm.
    """

    initial_H: np.ndarray
    transition_HH: np.ndarray
    emission_HV: np.ndarray

    @property
    def vocabulary(self) -> int:
        return int(self.emission_HV.shape[1])

    def begin(self, documents: int) -> np.ndarray:
        return np.tile(self.initial_H, (documents, 1))

    def predict(self, state: np.ndarray) -> np.ndarray:
        distribution_MV: np.ndarray = state @ self.emission_HV
        return distribution_MV

    def advance(self, state: np.ndarray, tokens_M: np.ndarray) -> np.ndarray:
        joint_MH = state * self.emission_HV[:, tokens_M].T
        belief_MH: np.ndarray = joint_MH / joint_MH.sum(axis=1, keepdims=True) @ self.transition_HH
        return belief_MH


@dataclass(frozen=True)
class NoisyCopy:
    """A source that repeats its tokens after `lag` tokens, with noise.

    The first `lag` tokens of a document are drawn uniformly. With probability `1 - noise`, a later token is a copy of
    the token `lag` positions before; otherwise it is drawn uniformly. Copies are copied too, so a document of three
    lags contains copies of copies. The state [M, lag] is the last `lag` tokens, with -1 before the start of the
    document.
    """

    vocabulary: int
    lag: int
    noise: float

    def begin(self, documents: int) -> np.ndarray:
        return np.full((documents, self.lag), -1)

    def predict(self, state: np.ndarray) -> np.ndarray:
        copied_M1 = state[:, :1]
        share_M1 = np.where(copied_M1 < 0, 0.0, 1 - self.noise)
        kept_MV: np.ndarray = share_M1 * (copied_M1 == np.arange(self.vocabulary))
        return kept_MV + (1 - share_M1) / self.vocabulary

    def advance(self, state: np.ndarray, tokens_M: np.ndarray) -> np.ndarray:
        return np.concatenate([state[:, 1:], tokens_M[:, None]], axis=1)


def rows_of_different_entropy(rows: int, symbols: int, random: np.random.Generator) -> np.ndarray:
    """Draw a table of distributions [rows, symbols], some nearly certain and others nearly uniform.

    Each row is drawn from a symmetric Dirichlet distribution. Its concentration is log-uniform between 0.01 and 3.2.
    """
    concentrations = 10 ** random.uniform(-2, 0.5, rows)
    table = np.stack([random.dirichlet(np.full(symbols, concentration)) for concentration in concentrations])
    return 0.999 * table + 0.001 / symbols  # no symbol is impossible, so every surprisal is finite


def _hidden_markov(random: np.random.Generator) -> HiddenMarkov:
    """Return a source with eight hidden states. Each state lasts about ten tokens."""
    states, symbols = 8, 32
    others = rows_of_different_entropy(states, states, random)
    transition_HH = 0.9 * np.eye(states) + 0.1 * others
    return HiddenMarkov(np.full(states, 1 / states), transition_HH, rows_of_different_entropy(states, symbols, random))


def _topic_mixture(random: np.random.Generator) -> HiddenMarkov:
    """Return a source with sixteen topics as hidden states. Each document has one topic, which never changes."""
    topics, symbols = 16, 32
    emission_HV = random.dirichlet(np.full(symbols, 0.3), topics)
    return HiddenMarkov(np.full(topics, 1 / topics), np.eye(topics), 0.99 * emission_HV + 0.01 / symbols)


SOURCES: dict[str, Callable[[np.random.Generator], KnownSource]] = {
    "markov-1": lambda random: MarkovChain(rows_of_different_entropy(64, 64, random)),
    "markov-3": lambda random: MarkovChain(rows_of_different_entropy(6**3, 6, random)),
    "hidden-markov": _hidden_markov,
    "noisy-copy": lambda random: NoisyCopy(vocabulary=32, lag=32, noise=0.1),
    "topic-mixture": _topic_mixture,
}
"""Constructors of sources by name. A constructor takes a random generator to draw the source's probabilities."""


def require_sources(names: Sequence[str]) -> None:
    """Check that sources with these names exist. Call this before a long computation.

    Raises:
        ValueError: if the list is empty or a name is unknown.
    """
    unknown = [name for name in names if name not in SOURCES]
    if unknown or not names:
        raise ValueError(f"`sources` {' '.join(unknown)}: choose from {', '.join(SOURCES)}")


@dataclass(frozen=True, kw_only=True)
class ContestSettings:
    """Sizes of models, training runs and data. With the defaults, a source takes a few minutes on one CPU core."""

    document_tokens: int = 64
    """Tokens per document. Every document is one window."""
    width: int = 64
    """Hidden size of every model except the encoder, whose hidden size is half as large."""
    layers: int = 2
    """Number of blocks of every model. The encoder has one block fewer, but at least one."""
    heads: int = 4
    """Number of attention heads of every model. The encoder has half as many, but at least one."""
    bottleneck_width: int = 1
    """Width of the window embedding."""
    steps: int = 400
    """Optimizer steps of the estimator. The language model gets the same compute."""
    second_order_steps: int = 150
    """Optimizer steps of each second-order model."""
    batch: int = 64
    """Documents per batch."""
    learning_rate: float = 3e-3
    """Peak learning rate of models that learn from documents. Models that learn from labels use a third of it."""
    labelled_documents: int = 6000
    """Number of unseen documents that are labelled to train the second-order models."""
    labelled_share: float = 0.2
    """Share of the tokens that are labelled in the training documents of the second-order models."""
    fresh_documents: int = 300
    """Number of documents on which all methods are compared. No model is trained on these documents."""
    seed: int = 0
    """Random seed of sources, documents and weights."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0 and name != "seed":
                raise ValueError(f"`contest.{name}` must be above 0, not {value}")
        if self.labelled_share > 1:
            raise ValueError(f"`contest.labelled_share` must be at most 1, not {self.labelled_share}")
