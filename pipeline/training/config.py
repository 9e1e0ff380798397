"""Settings of training (steps, batches, learning rate, saved states) and of a language model's objective."""

import math
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

Decay = Literal["cosine", "linear", "trapezoid"]
Average = Literal["none", "ema", "swa"]
ABOVE_ZERO = (
    "steps",
    "epochs",
    "tokens",
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
"""Names of the settings that do not change the trained model."""
PENALTIES = ("label_smoothing", "confidence_penalty", "z_loss")
BEFORE_THE_SETTING = {
    "cross_entropy": "torch",
    "optimizer": "adamw",
    "average": "none",
    "average_decay": 0.999,
    "average_from": 0.5,
    "gamma": 0.5,
    "cooldown": 0.2,
    **dict.fromkeys(PENALTIES, 0.0),
}
"""Values of newer settings that older versions always used. Saved states of older versions lack these settings. The
fingerprint therefore leaves out a newer setting that has this value."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Settings of a training run except its length: batches, optimizer, evaluations and saved states."""

    tokens_per_batch: int = 8192
    """Largest number of tokens in a batch, including padding. A window longer than this is a batch by itself."""
    accumulate: int = 1
    """Number of batches per optimizer step (gradient accumulation). Only one of these batches is in memory at a time.
    Loss and gradient equal those of one large batch with the same rows. The objectives flood-mean, random-share,
    reference-share and loss-share compare all tokens of the step, in all processes. With several batches or processes,
    the comparison takes another forward pass."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer. adamw: AdamW. muon: Muon for the matrices of the model's layers, and AdamW for embeddings, output
    projections and vectors. Muon's steps are scaled so that a learning rate that suits AdamW suits Muon too."""
    learning_rate: float = 1e-3
    """Peak learning rate, after a linear warm-up and before a decay to zero."""
    decay: Decay = "cosine"
    """Shape of the learning rate's decay after the warm-up. trapezoid: no decay until the cooldown, which is linear
    (arXiv 2405.18392). A finished training with trapezoid can be continued with more steps."""
    warmup: float = 0.05
    """Length of the learning rate's warm-up: a share of all steps if it is below 1, otherwise a number of steps. With
    --training.decay trapezoid, it must be a number of steps, so that the warm-up stays the same if training is
    continued with more steps."""
    cooldown: float = 0.2
    """Length of the cooldown with --training.decay trapezoid: a share of all steps if it is below 1, otherwise a number
    of steps. With 0, the learning rate stays at its peak."""
    weight_decay: float = 0.1
    """Weight decay of matrices; vectors are not decayed."""
    gradient_clip: float = 1.0
    """Clip the norm of the gradient to at most this value."""
    average: Average = "none"
    """Average of the weights over the steps. It is evaluated and saved instead of the last weights. none: no average;
    the last weights are used. ema: exponential moving average. swa: mean of all steps with equal weights (arXiv
    1803.05407)."""
    average_decay: float = 0.999
    """Decay per step with --training.average ema. After n averaged steps, the decay is at most (1 + n) / (10 + n)."""
    average_from: float = 0.5
    """Share of all steps that are done before the average of the weights begins. During these steps, the weights
    themselves are evaluated. With --training.average swa, the default leaves out the first steps, in which weights
    change much. With --training.average ema, the average forgets its first steps in any case."""
    evaluate_every: int = 500
    """Number of steps between evaluations. The model is also evaluated after the last step."""
    save_every: int | None = None
    """Number of steps between saved states, from which an interrupted run resumes. By default, a state is saved at each
    evaluation."""
    keep: int = 2
    """Number of saved states to keep. Older states are deleted, and the finished model replaces all states."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the forward pass in training: bf16, or no for float32. Weights are float32 in both cases."""
    compile: bool = False
    """Compile the forward pass of training with torch.compile. Compilation takes minutes and pays off on a GPU."""
    cross_entropy: Literal["torch", "cut-cross-entropy"] = "torch"
    """Kernel that computes the cross-entropy. cut-cross-entropy is for bf16 on a GPU and is installed with the extra
    `kernels`; its licence is Apple's own, not an open-source one."""
    save_as: Literal["float32", "bfloat16"] = "float32"
    """dtype of the saved weights. Weights are rounded to this dtype before the last evaluation."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that receive the metrics, in addition to metrics.jsonl. Give the names that accelerate uses,
    for example tensorboard, wandb or mlflow."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, and dropout."""

    def __post_init__(self) -> None:
        for name in ABOVE_ZERO:
            value = getattr(self, name, None)  # the length of a training is in its subclasses
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`training.{name}` must be above 0, not {value}")
        for name in AT_LEAST_ZERO:
            if getattr(self, name) < 0:
                raise ValueError(f"`training.{name}` must be 0 or more, not {getattr(self, name)}")
        if not (0 < self.warmup < 1 or (self.warmup >= 1 and float(self.warmup).is_integer())):
            raise ValueError(f"`training.warmup` must be a share above 0, or a number of steps, not {self.warmup}")
        if not (0 <= self.cooldown < 1 or float(self.cooldown).is_integer()) or self.cooldown < 0:
            raise ValueError(f"`training.cooldown` must be a share, or a number of steps, not {self.cooldown}")
        if self.decay == "trapezoid" and self.warmup < 1:
            raise ValueError(
                "`training.decay` trapezoid needs `training.warmup` as a number of steps, so that more steps do not"
                f" change the warm-up, not {self.warmup}"
            )
        if not 0 < self.average_decay < 1:
            raise ValueError(f"`training.average_decay` must be above 0 and below 1, not {self.average_decay}")
        if not 0 <= self.average_from < 1:
            raise ValueError(f"`training.average_from` must be at least 0 and below 1, not {self.average_from}")
        if self.cross_entropy == "cut-cross-entropy" and find_spec("cut_cross_entropy") is None:
            install = "install it with pip install 'token-entropy[kernels]', or take torch"
            raise ValueError(f"`training.cross_entropy` cut-cross-entropy is not installed; {install}")
        installed = installed_trackers() if self.trackers else []
        for name in self.trackers:
            if name not in installed:
                known = f"choose from {', '.join(installed)}" if installed else "no tracker is installed"
                raise ValueError(f"`training.trackers` {name} is not installed or not known to accelerate; {known}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StepSettings):
    """Settings of a training run, with its number of steps."""

    steps: int = 2000
    """Number of optimizer steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ramps = (self.warmup if self.warmup >= 1 else 0) + self.cooldown_steps
        if ramps > self.steps:
            raise ValueError(
                f"`training.warmup` and `training.cooldown` take {ramps:,.0f} steps of a training of {self.steps:,};"
                " give fewer"
            )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Settings, by name, that determine the trained model and the metrics of its training."""
        return _chosen({name: value for name, value in asdict(self).items() if name not in NOT_IN_FINGERPRINT})

    @property
    def first_averaged(self) -> int:
        """Number of the first step whose weights enter the average, from 1 to `steps`."""
        return math.floor(self.average_from * self.steps) + 1

    @property
    def averaged(self) -> dict[str, str]:
        """Row of a model card that describes the average of the weights; empty if weights are not averaged."""
        if self.average == "none":
            return {}
        ema = f"moving average with decay up to {self.average_decay}"
        kind = ema if self.average == "ema" else "mean with equal weights"
        return {"weights": f"{kind}, of steps {self.first_averaged:,} to {self.steps:,}"}

    @property
    def cooldown_steps(self) -> int:
        """Number of steps at the end in which `trapezoid` lowers the learning rate to zero; 0 for other decays."""
        if self.decay != "trapezoid":
            return 0
        return int(self.cooldown) if self.cooldown >= 1 else round(self.cooldown * self.steps)

    @property
    def lasting_step(self) -> int | None:
        """Step whose state does not depend on the total number of steps, so that training can continue from this state.

        With a cooldown, this is the last step before the cooldown. Without a cooldown, it is the last step but one,
        since the weights may be averaged and rounded in the last step. The value is None if this would be step 0. It is
        also None if the decay is not trapezoid, because every step then depends on the total number of steps.
        """
        return self.steps - max(1, self.cooldown_steps) or None if self.decay == "trapezoid" else None

    def learning_rate_at(self, step: int) -> float:
        """Return a step's learning rate: a linear warm-up to the peak, then the decay to zero."""
        if self.warmup >= 1 and step < self.warmup:
            return self.learning_rate * (step / self.warmup)
        if self.decay == "trapezoid":
            return self.learning_rate * min(1.0, (self.steps + 1 - step) / (self.cooldown_steps + 1))
        progress = step / (self.steps + 1)
        warmup = self.warmup if self.warmup < 1 else self.warmup / (self.steps + 1)
        if progress < warmup:
            return self.learning_rate * (progress / warmup)
        done = (progress - warmup) / (1 - warmup)
        share = 1 - done if self.decay == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)
        return self.learning_rate * share

    def evaluates(self, step: int) -> bool:
        """True if the model is evaluated after the step."""
        return step % self.evaluate_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        """True if the state is saved after the step."""
        if step in (self.lasting_step, self.steps):
            return True
        return self.evaluates(step) if self.save_every is None else step % self.save_every == 0


Gpu = Literal["a100", "h100", "h200", "b200"]
PEAK_TFLOP: dict[Gpu, int] = {"a100": 312, "h100": 989, "h200": 989, "b200": 2250}
"""TFLOP/s of dense products in bfloat16, from NVIDIA's data sheets of the SXM variants."""


@dataclass(frozen=True, kw_only=True)
class DryRunSettings:
    """Settings of a dry run, which prints what a training costs and trains nothing."""

    dry_run: bool = False
    """Print the cost of the training instead of training: parameters, FLOP, epochs, memory and hours. The speed is
    measured in a few steps, unless --gpu names a GPU."""
    gpu: Gpu | None = None
    """GPU for which --dry-run computes the hours. By default, the speed is measured on the devices of all processes."""
    gpus: int | None = None
    """Number of GPUs, for --dry-run. By default, the number of processes."""
    utilisation: float = 0.4
    """Assumed share of the GPU's peak speed, for --dry-run with --gpu. Models of small width reach less."""

    def __post_init__(self) -> None:
        if self.gpus is not None and self.gpus < 1:
            raise ValueError(f"`gpus` must be at least 1, not {self.gpus}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"`utilisation` must be above 0 and at most 1, not {self.utilisation}")

    def require_precision(self, config: StepSettings) -> None:
        """Raise if `gpu` is set but training is not in bfloat16. Hours are computed from the peak speed in bfloat16.

        Raises:
            ValueError: if a GPU is named, and training is in float32.
        """
        if self.gpu is not None and config.precision != "bf16":
            raise ValueError("`gpu` computes hours for bfloat16; give `training.precision` bf16, or leave out `gpu`")


ObjectiveName = Literal[
    "flood",
    "floor",
    "weight",
    "mask",
    "adaflood",
    "probability",
    "cross-entropy",
    "flood-mean",
    "iflood",
    "random-share",
    "reference-share",
    "loss-share",
]
NEED_LABELS: tuple[ObjectiveName, ...] = (
    "flood",
    "floor",
    "weight",
    "mask",
    "adaflood",
    "probability",
    "reference-share",
)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """Settings of the objective to minimise, a function of each token's loss l and entropy e.

    Both are in nats, and e = `scale * label + margin`.
    """

    objective: ObjectiveName = "flood"
    """Objective to minimise, from a token's loss l and its entropy e. flood: |l - e|. floor: max(l - e, 0). weight:
    (1 - ê) l, where ê is e scaled to 0..1 in each window. mask: l where e is below the threshold, else 0. adaflood:
    |l - b|, where b = -ln((1 - gamma) exp(-e) + gamma) (AdaFlood, arXiv 2311.02891). probability: binary cross-entropy
    of the model's probability exp(-l) of the token, with exp(-e) as the target. The other objectives are controls.
    cross-entropy: l. flood-mean: |mean l - level|. iflood: |l - level| (iFlood, ICLR 2022). random-share: l of a random
    share of the tokens. reference-share: l of the tokens with the largest l - e, for labels that are the losses of a
    reference model (Rho-1, arXiv 2404.07965). loss-share: l of the tokens with the largest l (ESLM, arXiv
    2505.19893)."""
    scale: float = 1.0
    """Multiply every label by this factor: below 1 if labels are spread too widely, above 1 if too narrowly."""
    margin: float = 0.0
    """Add this many nats to every label: above 0 if labels are too low, below 0 if they are too high."""
    threshold: float | None = None
    """Threshold of the objective mask in nats. Tokens whose e is not below the threshold add no loss. By default, the
    mean of e over the labelled tokens."""
    level: float | None = None
    """With the objectives flood-mean and iflood, the level in their formulas, in nats. By default, the mean of e over
    the labelled tokens."""
    gamma: float = 0.5
    """Strength of the correction by the objective adaflood, which is |l - b| with a level b between 0 and e. With gamma
    0, b is e. With gamma 1, b is 0, and the objective is l."""
    share: float = 0.6
    """Share of each step's tokens on which the objectives random-share, reference-share and loss-share train."""
    label_smoothing: float = 0.0
    """Smooth the target of each token: this share of its probability is spread evenly over the vocabulary. l stays the
    plain cross-entropy in every objective, and the difference that smoothing makes to l is added to the objective. With
    the objective cross-entropy, the sum equals torch's cross-entropy with label_smoothing."""
    confidence_penalty: float = 0.0
    """Subtract this many times the entropy of each prediction, in nats, from the objective (Pereyra et al. 2017, arXiv
    1701.06548)."""
    z_loss: float = 0.0
    """Coefficient of the z-loss, which is added to each token's objective. The z-loss is the square of the logsumexp of
    the logits. PaLM uses the coefficient 1e-4 (arXiv 2204.02311)."""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"`gamma` must be at least 0 and at most 1, not {self.gamma}")
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` must be above 0 and at most 1, not {self.share}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be at least 0 and below 1, not {self.label_smoothing}")
        for name in ("confidence_penalty", "z_loss"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be 0 or more, not {getattr(self, name)}")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Settings, by name, that determine the trained model."""
        return _chosen(asdict(self))

    def require_logits(self, config: StepSettings) -> None:
        """Raise if a penalty needs sums over logits, and the kernel of the cross-entropy does not return them.

        Raises:
            ValueError: if a penalty is not 0, and the kernel is cut-cross-entropy.
        """
        needing = [f"`{name}`" for name in PENALTIES if getattr(self, name)]
        if needing and config.cross_entropy != "torch":
            raise ValueError(
                f"`training.cross_entropy` {config.cross_entropy} cannot compute {', '.join(needing)}; take torch, or"
                " leave the penalty out"
            )


def _chosen(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, without any setting that BEFORE_THE_SETTING lists with the same value."""
    return {
        name: value
        for name, value in settings.items()
        if name not in BEFORE_THE_SETTING or value != BEFORE_THE_SETTING[name]
    }


def installed_trackers() -> list[str]:
    """Return the names of the experiment trackers that accelerate can start in this environment.

    Custom trackers that are registered with accelerate are included.
    """
    # imported here because accelerate takes seconds, and --help does not need it
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    built_in = {str(name) for name in LoggerType}
    registered = {str(name) for name in LOGGER_TYPE_TO_CLASS} - built_in
    return sorted(registered | {str(name) for name in get_available_trackers()})
