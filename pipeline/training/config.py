"""Training settings: steps, batches, learning rate and saved states, and the objective of a language model."""

import math
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

Decay = Literal["cosine", "linear"]
ABOVE_ZERO = (
    "steps",
    "tokens_per_batch",
    "accumulate",
    "learning_rate",
    "gradient_clip",
    "evaluate_every",
    "save_every",
    "keep",
)
AT_LEAST_ZERO = ("weight_decay", "seed")
NOT_IN_FINGERPRINT = ("save_every", "keep", "trackers")
"""Settings that do not change the trained model."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer steps, batches and evaluations."""

    steps: int = 2000
    """Optimizer steps."""
    tokens_per_batch: int = 8192
    """Tokens in a batch, padding included."""
    accumulate: int = 1
    """Batches per step, of which one at a time is in memory; loss and gradient equal those of one large batch.
    Objectives that compare tokens (flood-mean, random-share, reference-share) compare all tokens of the step in all
    processes, which takes another forward pass if there are several batches or processes."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW, after a linear warm-up and before a decay to zero."""
    decay: Decay = "cosine"
    """Shape of the learning rate's decay."""
    warmup: float = 0.05
    """Share of the steps used for warm-up."""
    weight_decay: float = 0.1
    """Weight decay of matrices; vectors are not decayed."""
    gradient_clip: float = 1.0
    """Clip the gradient to this norm."""
    evaluate_every: int = 500
    """Steps between evaluations; the last step is always evaluated."""
    save_every: int | None = None
    """Steps between saved states, from which an interrupted run resumes; by default one at each evaluation."""
    keep: int = 2
    """Number of newest states to keep; the finished model replaces all states."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the forward pass; weights stay in float32."""
    compile: bool = False
    """Compile the forward pass of training with torch.compile, which takes minutes and pays off on a GPU."""
    cross_entropy: Literal["torch", "cut-cross-entropy"] = "torch"
    """Cross-entropy kernel. cut-cross-entropy comes with the extra `kernels` and is for bf16 on a GPU; its licence is
    Apple's own, not an open-source one."""
    save_as: Literal["float32", "bfloat16"] = "float32"
    """dtype of the saved weights; the last evaluation uses the weights as saved."""
    trackers: tuple[str, ...] = ()
    """Trackers that also receive the metrics, by their names in accelerate: tensorboard, wandb, mlflow, ..."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, and dropout."""

    def __post_init__(self) -> None:
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`training.{name}` must be above 0, not {value}")
        for name in AT_LEAST_ZERO:
            if getattr(self, name) < 0:
                raise ValueError(f"`training.{name}` must be 0 or more, not {getattr(self, name)}")
        if not 0 < self.warmup < 1:
            raise ValueError(f"`training.warmup` must be above 0 and below 1, not {self.warmup}")
        if self.cross_entropy == "cut-cross-entropy" and find_spec("cut_cross_entropy") is None:
            install = "install it with pip install 'token-entropy[kernels]', or take torch"
            raise ValueError(f"`training.cross_entropy` cut-cross-entropy is not installed; {install}")
        installed = installed_trackers() if self.trackers else []
        for name in self.trackers:
            if name not in installed:
                known = f"choose from {', '.join(installed)}" if installed else "no tracker is installed"
                raise ValueError(f"`training.trackers` {name} is not installed or not known to accelerate; {known}")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Settings that determine the trained model and its metrics."""
        settings = {name: value for name, value in asdict(self).items() if name not in NOT_IN_FINGERPRINT}
        if self.cross_entropy == "torch":  # as in states from before this setting existed
            del settings["cross_entropy"]
        return settings

    def learning_rate_at(self, step: int) -> float:
        """Return a step's learning rate: a linear warm-up to the peak, then the decay to zero."""
        progress = step / (self.steps + 1)
        if progress < self.warmup:
            return self.learning_rate * (progress / self.warmup)
        done = (progress - self.warmup) / (1 - self.warmup)
        share = 1 - done if self.decay == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)
        return self.learning_rate * share

    def evaluates(self, step: int) -> bool:
        """True if the model is evaluated after the step."""
        return step % self.evaluate_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """True if the state is saved after the step."""
        return self.evaluates(step) if self.save_every is None else step % self.save_every == 0 or step == self.steps


ObjectiveName = Literal[
    "flood", "floor", "weight", "mask", "cross-entropy", "flood-mean", "random-share", "reference-share"
]
NEED_LABELS: tuple[ObjectiveName, ...] = ("flood", "floor", "weight", "mask", "reference-share")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Objective to minimise. l is a token's loss and e its entropy, `scale * label + margin`, both in nats."""

    objective: ObjectiveName = "flood"
    """Objective to minimise, from a token's loss l and its entropy e. flood: |l - e|. floor: max(l - e, 0). weight:
    (1 - ê) l, where ê is e scaled to 0..1 in each window. mask: l where e is below the threshold, else 0. Controls:
    cross-entropy: l. flood-mean: |mean l - level|. random-share: l of a random share of the tokens. reference-share: l
    of the share with the largest l - e, for labels that are the losses of a reference model (Rho-1,
    arXiv 2404.07965)."""
    scale: float = 1.0
    """Factor of every label, for labels known to be spread too wide or too narrow."""
    margin: float = 0.0
    """Nats added to every label, for labels known to be too low; below 0 for labels that are too high."""
    threshold: float | None = None
    """Threshold of mask, in nats; the mean of e by default."""
    level: float | None = None
    """Level of flood-mean, in nats; the mean of e by default."""
    share: float = 0.6
    """Share of the tokens that random-share and reference-share train on."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` must be above 0 and at most 1, not {self.share}")


def installed_trackers() -> list[str]:
    """Return the names of the trackers that accelerate can start here, including any registered with it."""
    # imported here because accelerate takes seconds, and --help does not need it
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    built_in = {str(name) for name in LoggerType}
    registered = {str(name) for name in LOGGER_TYPE_TO_CLASS} - built_in
    return sorted(registered | {str(name) for name in get_available_trackers()})
