"""Settings of a training: steps, learning rate and files, and the objective of a language model."""

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
"""Settings that leave the trained model as it is."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimizer steps, batches and evaluations of a training."""

    steps: int = 2000
    """Optimizer steps."""
    tokens_per_batch: int = 8192
    """Tokens in a batch, padding included."""
    accumulate: int = 1
    """Batches per step, one after the other in memory: losses and gradients are those of one batch that holds them all.
    Objectives that compare tokens (flood-mean and the shares) compare those of the whole step, in all processes; with
    several batches or processes that takes another forward pass."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW; a linear warm-up before it, a decay to zero after it."""
    decay: Decay = "cosine"
    """How the rate falls after the peak."""
    warmup: float = 0.05
    """Share of the steps that warm up."""
    weight_decay: float = 0.1
    """On matrices; vectors are not decayed."""
    gradient_clip: float = 1.0
    """Largest norm of a gradient."""
    evaluate_every: int = 500
    """Steps between evaluations; there is one at the end too."""
    save_every: int | None = None
    """Steps between states that an interrupted training resumes from; at each evaluation by default."""
    keep: int = 2
    """Newest states to keep; the finished model replaces all of them."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the forward pass; weights stay in float32."""
    compile: bool = False
    """Compile the forward pass of the training (torch.compile). Worth its minutes on a GPU."""
    cross_entropy: Literal["torch", "cut-cross-entropy"] = "torch"
    """Kernel of the cross-entropy. cut-cross-entropy, of the extra `kernels`, is for bf16 on a GPU; its licence is
    Apple's own, not an open-source one."""
    save_as: Literal["float32", "bfloat16"] = "float32"
    """Type of the saved weights; the last evaluation is of the weights as saved."""
    trackers: tuple[str, ...] = ()
    """Trackers that get the metrics too, by accelerate's names: tensorboard, wandb, mlflow, ..."""
    seed: int = 0
    """Decides the initial weights and the order of the data."""

    def __post_init__(self) -> None:
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`training.{name}` must be above 0, not {value}")
        for name in AT_LEAST_ZERO:
            if getattr(self, name) < 0:
                raise ValueError(f"`training.{name}` must be 0 or more, not {getattr(self, name)}")
        if not 0 < self.warmup < 1:
            raise ValueError(f"`training.warmup` is a share between 0 and 1, not {self.warmup}")
        if self.cross_entropy == "cut-cross-entropy" and find_spec("cut_cross_entropy") is None:
            install = "install it with pip install 'token-entropy[kernels]', or take torch"
            raise ValueError(f"`training.cross_entropy` cut-cross-entropy is not installed; {install}")
        installed = installed_trackers() if self.trackers else []
        for name in self.trackers:
            if name not in installed:
                known = f"those here are {', '.join(installed)}" if installed else "none is here"
                raise ValueError(f"`training.trackers` {name} is not installed or not known to accelerate; {known}")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the trained model and its metrics depend on."""
        settings = {name: value for name, value in asdict(self).items() if name not in NOT_IN_FINGERPRINT}
        if self.cross_entropy == "torch":  # as in states from before there was a choice
            del settings["cross_entropy"]
        return settings

    def learning_rate_at(self, step: int) -> float:
        """Linear to its peak up to `warmup`, then by the decay to zero."""
        progress = step / (self.steps + 1)
        if progress < self.warmup:
            return self.learning_rate * (progress / self.warmup)
        done = (progress - self.warmup) / (1 - self.warmup)
        share = 1 - done if self.decay == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)
        return self.learning_rate * share

    def evaluates(self, step: int) -> bool:
        """Whether there is an evaluation after the step."""
        return step % self.evaluate_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """Whether the state is kept after the step."""
        return self.evaluates(step) if self.save_every is None else step % self.save_every == 0 or step == self.steps


ObjectiveName = Literal[
    "flood", "floor", "weight", "mask", "cross-entropy", "flood-mean", "random-share", "reference-share"
]
NEED_LABELS: tuple[ObjectiveName, ...] = ("flood", "floor", "weight", "mask", "reference-share")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """The objective to minimise. l is a token's loss, e its entropy, `scale * label + margin`, in nats."""

    objective: ObjectiveName = "flood"
    """flood: |l - e|. floor: max(l - e, 0). weight: (1 - ê) l, ê scaled to 0..1 in each window. mask: l where e is
    below the threshold. Controls: cross-entropy: l. flood-mean: |mean l - level|. random-share: l of a random share of
    the tokens. reference-share: l of the share with the largest l - e, for labels that are a reference model's losses
    (Rho-1, arXiv 2404.07965)."""
    scale: float = 1.0
    """Times a label, where labels are known to be too wide or too narrow."""
    margin: float = 0.0
    """Nats added to a label, where labels are known to be too low (or, below 0, too high)."""
    threshold: float | None = None
    """For mask, in nats; the mean of e by default."""
    level: float | None = None
    """For flood-mean, in nats; the mean of e by default."""
    share: float = 0.6
    """For random-share and reference-share, of the tokens that are trained on."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` must be above 0 and at most 1, not {self.share}")


def installed_trackers() -> list[str]:
    """Names of the trackers that accelerate can start here, those that were registered with it among them."""
    # accelerate takes seconds, which --help does not need
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    built_in = {str(name) for name in LoggerType}
    registered = {str(name) for name in LOGGER_TYPE_TO_CLASS} - built_in
    return sorted(registered | {str(name) for name in get_available_trackers()})
