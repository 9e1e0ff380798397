"""The settings of a contest, as flags give them; no torch here, so that `--help` comes at once."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ContestSettings:
    """Sizes and lengths; the defaults are for one CPU core and some minutes a source."""

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
                raise ValueError(f"--contest.{name.replace('_', '-')} must be above 0, not {value}")
        if self.labelled_share > 1:
            raise ValueError(f"--contest.labelled-share must be at most 1, not {self.labelled_share}")
