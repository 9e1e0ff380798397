"""Sources of known entropy, documents drawn from them with the truth of every token, and the settings of a contest.

No torch here: the settings become flags, and `--help` comes at once.

M documents, T tokens of each, V symbols, H hidden states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


class KnownSource(Protocol):
    """`State` is whatever a source remembers of M documents."""

    @property
    def vocabulary(self) -> int: ...

    def begin(self, documents: int) -> np.ndarray:
        """The state [M, ...] before the first token."""

    def predict(self, state: np.ndarray) -> np.ndarray:
        """Distribution [M, V] of each document's next token."""

    def advance(self, state: np.ndarray, tokens_M: np.ndarray) -> np.ndarray:
        """The state after the tokens."""


class Drawn(NamedTuple):
    """Documents and their truth in nats: `-ln p(x[i] | x[:i])` and `H(X[i] | x[:i])`."""

    tokens_MT: np.ndarray
    surprisal_MT: np.ndarray
    entropy_MT: np.ndarray


def draw(source: KnownSource, documents: int, tokens: int, random: np.random.Generator) -> Drawn:
    """Fresh documents of `tokens` tokens each, with the truth of every token."""
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
    """`-sum p ln p` of each row, in nats."""
    logarithms_MV = np.log(probabilities_MV, where=probabilities_MV > 0, out=np.zeros_like(probabilities_MV))
    entropy_M: np.ndarray = -(probabilities_MV * logarithms_MV).sum(axis=1)
    return entropy_M


@dataclass(frozen=True)
class MarkovChain:
    """The next symbol depends on the last K: row `r` of the table is its distribution after the context `r`."""

    table: np.ndarray

    @property
    def vocabulary(self) -> int:
        return int(self.table.shape[1])

    def begin(self, documents: int) -> np.ndarray:
        """Every document begins as if symbol 0 had come K times."""
        return np.zeros(documents, dtype=np.int64)

    def predict(self, state: np.ndarray) -> np.ndarray:
        rows_MV: np.ndarray = self.table[state]
        return rows_MV

    def advance(self, state: np.ndarray, tokens_M: np.ndarray) -> np.ndarray:
        following: np.ndarray = (state * self.vocabulary + tokens_M) % len(self.table)
        return following


@dataclass(frozen=True)
class HiddenMarkov:
    """A hidden chain emits the symbols; the state is the forward algorithm's belief [M, H] about it."""

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
    """Random symbols that come again `lag` tokens later, each kept with probability `1 - noise`, else drawn anew.

    A copy is copied in turn, so a document of three lags holds a copy of a copy. The state is the last `lag` tokens,
    -1 where there were none.
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
    """Distributions [rows, symbols] from nearly certain to nearly uniform: Dirichlet, concentration 0.01 to 3."""
    concentrations = 10 ** random.uniform(-2, 0.5, rows)
    table = np.stack([random.dirichlet(np.full(symbols, concentration)) for concentration in concentrations])
    return 0.999 * table + 0.001 / symbols  # nothing is impossible, so that every surprisal is finite


def _hidden_markov(random: np.random.Generator) -> HiddenMarkov:
    """Eight hidden states that last ten tokens each."""
    states, symbols = 8, 32
    others = rows_of_different_entropy(states, states, random)
    transition_HH = 0.9 * np.eye(states) + 0.1 * others
    return HiddenMarkov(np.full(states, 1 / states), transition_HH, rows_of_different_entropy(states, symbols, random))


def _topic_mixture(random: np.random.Generator) -> HiddenMarkov:
    """Sixteen topics, one per document: a hidden chain that never leaves its state."""
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
"""What labels are measured against; each is made from a generator, which decides its tables."""


def require_sources(names: Sequence[str]) -> None:
    """Check names of sources before a long computation.

    Raises:
        ValueError: if there are none, or one is unknown.
    """
    unknown = [name for name in names if name not in SOURCES]
    if unknown or not names:
        raise ValueError(f"`sources` {' '.join(unknown)}: choose from {', '.join(SOURCES)}")


@dataclass(frozen=True, kw_only=True)
class ContestSettings:
    """Sizes and lengths; the defaults are for one CPU core and some minutes per source."""

    document_tokens: int = 64
    """Tokens in a document, which is one window."""
    width: int = 64
    """Hidden size of every model; the encoder has half."""
    layers: int = 2
    """Blocks of every model; the encoder has one less."""
    heads: int = 4
    """Attention heads of every model; the encoder has half."""
    bottleneck_width: int = 1
    """Numbers in the embedding of a window."""
    steps: int = 400
    """Optimizer steps of the estimator; the language model takes as many as have the same compute."""
    second_order_steps: int = 150
    """Optimizer steps of each second-order model."""
    batch: int = 64
    """Documents in a batch."""
    learning_rate: float = 3e-3
    """Peak rate of what learns from documents; what learns from labels takes a third."""
    labelled_documents: int = 6000
    """Documents, other than those trained on, that are labelled for the second-order models."""
    labelled_share: float = 0.2
    """Share of their tokens that is labelled."""
    fresh_documents: int = 300
    """Documents that all methods are compared on and nothing was trained on."""
    seed: int = 0
    """Decides sources, documents and weights."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0 and name != "seed":
                raise ValueError(f"`contest.{name}` must be above 0, not {value}")
        if self.labelled_share > 1:
            raise ValueError(f"`contest.labelled_share` must be at most 1, not {self.labelled_share}")
