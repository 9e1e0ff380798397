"""Dry run of a training: its size, compute, memory and time, printed instead of training.

Parameters, FLOP and the fixed part of the memory are computed from the model. The fixed part holds the weights, their
gradients, the states of the optimizer, and the average of the weights if there is one. The memory of activations is
measured on two windows and scaled. The speed is measured by a few training steps on the devices of all processes, or
computed for a GPU with an assumed utilisation.

B rows, T tokens.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from pipeline.messages import say
from pipeline.models.cross_entropy import CHUNK_LOGITS, cut_cross_entropy
from pipeline.models.mixer import CausalConvolution
from pipeline.progress import stage
from pipeline.training.batches import Batch
from pipeline.training.config import PEAK_TFLOP, DryRunSettings, TrainingConfig
from pipeline.training.distributed import DistributedModel, gathered, new_accelerator, this_process
from pipeline.training.epoch import Epoch
from pipeline.training.flop import ACROSS_POSITIONS, head_weight, parameter_counts, training_flop
from pipeline.training.optimizer import new_optimizer, state_bytes
from pipeline.training.trainer import Loss, compiled

PROBE_TOKENS = 128  # per window on which a CPU measures activations: seconds on a core, for 100 M parameters
MEASURED_SECONDS, GROWTH = 30.0, 4  # longest measurement, and the factor from one measured batch to the next
FLOAT32, LOGIT = 4, 8  # bytes of a weight, of a logit with its softmax
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Cost:
    """Cost of training a model."""

    model: PreTrainedModel
    loss: Loss
    epoch: Epoch
    config: TrainingConfig
    settings: DryRunSettings
    models: int = 1
    """Number of models that are trained, one for each fold."""
    predicts: bool = True
    """True if training computes a language-model loss."""
    compares: bool = False
    """True if the loss compares all tokens of a step with each other. With several batches per step or several GPUs,
    the comparison takes another forward pass."""

    def __post_init__(self) -> None:
        self.settings.require_precision(self.config)

    @property
    def gpus(self) -> int:
        """Number of GPUs in the settings or, by default, the number of processes."""
        return self.settings.gpus or this_process().num_processes

    @property
    def tokens_per_step(self) -> float:
        """Mean number of tokens of an optimizer step."""
        return self.config.accumulate * self.epoch.tokens_of_batch(self.config.tokens_per_batch)

    @property
    def tokens(self) -> float:
        """Number of tokens of all steps."""
        return self.config.steps * self.tokens_per_step

    @cached_property
    def flop_per_token(self) -> dict[str, float]:
        """FLOP per token, on average, by name of the model's part."""
        forwards = 1 if self.compares and self.config.accumulate * self.gpus > 1 else 0
        lengths_W = self.epoch.lengths_W
        flop = training_flop(self.model, lengths_W, predicts=self.predicts, more_forwards=forwards)
        return {part: total / float(lengths_W.sum()) for part, total in flop.items()}

    @property
    def total_flop_per_token(self) -> float:
        return sum(flop for part, flop in self.flop_per_token.items() if part != ACROSS_POSITIONS)

    @property
    def state_bytes(self) -> dict[str, int]:
        """Bytes by name: weights, gradients, optimizer states and any average of weights. All are in float32."""
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        of_optimizer = state_bytes(new_optimizer(self.model, self.config))
        average = {} if self.config.average == "none" else {"average": FLOAT32 * trained}
        return {"weights": FLOAT32 * weights, "gradients": FLOAT32 * trained, "optimizer": of_optimizer, **average}

    @property
    def positions_per_gpu(self) -> int:
        """Number of positions of a batch that one GPU computes if the batch is full of the longest windows."""
        longest = self.epoch.longest.input_ids_BT.shape[1]
        rows = max(1, self.config.tokens_per_batch // longest)
        return -(-rows // self.gpus) * longest

    @property
    def probe_tokens(self) -> int:
        """Number of tokens in each of the windows on which the memory of activations is measured.

        On a CPU, these windows are short to save time. A mixer is measured on whole windows, since it keeps a masked
        weight for each pair of positions.
        """
        longest = self.epoch.longest.input_ids_BT.shape[1]
        mixes = any(isinstance(layer, CausalConvolution) for layer in self.model.modules())
        return longest if mixes or this_process().device.type == "cuda" else min(longest, PROBE_TOKENS)

    @cached_property
    def activation_bytes(self) -> int:
        """Estimated bytes of the tensors that one GPU keeps for the backward pass, and of the logits of one chunk.

        The estimate is for training without compilation.
        """
        with stage("measuring the memory of activations"):
            probes = [probe_batch(self.epoch.longest, rows, self.probe_tokens) for rows in (1, 2)]
            one, two = (kept_bytes(self.model, self.loss, probe, self.config) for probe in probes)
        per_position = (two - one) / self.probe_tokens
        constant = max(0, 2 * one - two)  # does not grow with the batch: weights rounded to bfloat16
        logits = min(self.positions_per_gpu * len(head_weight(self.model)), CHUNK_LOGITS) if self.predicts else 0
        return round(per_position * self.positions_per_gpu + constant + LOGIT * logits)

    @cached_property
    def speed(self) -> "StepSpeed":
        """Computed speed if the settings name a GPU, otherwise the measured speed."""
        if self.settings.gpu is None:
            return measured_speed(self.model, self.loss, self.epoch.longest, self.config)
        flop = self.gpus * PEAK_TFLOP[self.settings.gpu] * TERA * self.settings.utilisation
        gpus, share = f"{self.gpus:,} × {self.settings.gpu}", f"{self.settings.utilisation:.0%}"
        peak = f"{PEAK_TFLOP[self.settings.gpu]:,} TFLOP/s"
        return StepSpeed(flop / self.total_flop_per_token, f"computed for {gpus} at {share} of {peak}, not measured")

    @property
    def hours(self) -> float:
        """Hours of all steps of all models, without evaluations and saved states."""
        return self.models * self.tokens / self.speed.tokens_per_second / 3600


@dataclass(frozen=True)
class StepSpeed:
    """Speed of training."""

    tokens_per_second: float
    origin: str
    """Description of how the speed was obtained, as text."""


def probe_batch(batch: Batch, rows: int, tokens: int) -> Batch:
    """Return a batch of `rows` equal rows, each with the first `tokens` tokens of the first row of `batch`."""
    ids_BT, positions_BT = (
        None if each_BT is None else each_BT[:1, :tokens].expand(rows, -1).contiguous()
        for each_BT in (batch.input_ids_BT, batch.positions_BT)
    )
    assert ids_BT is not None
    labels_BT = None if batch.labels_BT is None else torch.zeros(ids_BT.shape)
    return Batch(ids_BT, torch.full((rows,), ids_BT.shape[1]), labels_BT, positions_BT=positions_BT)


def kept_bytes(model: PreTrainedModel, loss: Loss, batch: Batch, config: TrainingConfig) -> int:
    """Return the bytes of all tensors that a forward pass keeps for its backward pass, except the model's weights."""
    device = this_process().device
    model.to(device)
    kept = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    precision = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    with saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        result = loss(model.train(), batch.to(device))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del result  # only now, so that no address is taken twice
    return sum(size for address, size in kept.items() if address not in weights)


def measured_speed(model: PreTrainedModel, loss: Loss, batch: Batch, config: TrainingConfig) -> StepSpeed:
    """Measure training steps on the devices of all processes. The steps change the model.

    The first step is done twice, because a device is slower when it is first used. Each later step has four times as
    many rows as the step before. The measurement ends once a step has the whole batch, or if the next step is expected
    to end after MEASURED_SECONDS. The last step gives the speed.
    """
    accelerator = new_accelerator(config, output=None)
    trained = DistributedModel(model, partial(new_optimizer, config=config), accelerator)
    step = partial(_seconds_of_step, trained, compiled(loss, config))
    rows, growth, spent = min(len(batch.lengths_B), accelerator.num_processes), 1, 0.0
    kernel = cut_cross_entropy(config.cross_entropy == "cut-cross-entropy")
    with kernel, stage(f"measuring for at most {MEASURED_SECONDS:.0f} s"):
        while True:
            part = batch.first(rows)
            seconds = step(part)
            spent += seconds
            whole = rows == len(batch.lengths_B) and growth > 1
            if whole or spent + growth * seconds > MEASURED_SECONDS:
                break
            rows, growth = min(len(batch.lengths_B), rows * growth), GROWTH
    tokens, count = int(part.lengths_B.sum()), accelerator.num_processes
    kind, ending = ("GPU", "s") if accelerator.device.type == "cuda" else ("CPU process", "es")
    devices = f"{count:,} {kind}{ending if count > 1 else ''}"
    origin = f"measured on {devices} here with a step of {tokens:,} tokens in {seconds:.2g} s"
    return StepSpeed(tokens / max(1e-9, seconds), origin)


def _seconds_of_step(trained: DistributedModel[Any], loss: Loss, batch: Batch) -> float:
    """Return the seconds that a training step takes in the slowest process."""
    accelerator, started = trained.accelerator, time.monotonic()
    part = batch.part(accelerator.process_index, accelerator.num_processes).to(accelerator.device)
    with accelerator.autocast():
        nats = trained.module(loss, part)
    accelerator.backward(nats)
    trained.stepping.step()
    trained.stepping.zero_grad()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return max(gathered(time.monotonic() - started))


def print_cost(cost: Cost) -> None:
    """Print the cost in the main process. All processes must call this, since all of them measure the speed."""
    lines = list(_lines(cost))
    if this_process().is_main_process:
        say(*lines)


def _lines(cost: Cost) -> Iterable[str]:
    embeddings, others = parameter_counts(cost.model)
    epoch, config, per_step = cost.epoch, cost.config, cost.total_flop_per_token * cost.tokens_per_step / TERA
    if cost.models > 1:
        yield f"models         {cost.models}, one per fold; the time is for all, other lines are about one"
    yield f"parameters     {embeddings + others:,}, {embeddings:,} of them in embeddings"
    yield f"step           {cost.tokens_per_step:,.0f} tokens{_batches(cost)}"
    epochs = f"{cost.tokens / epoch.tokens:,.2f} epochs"
    yield f"training       {config.steps:,} steps, {_count(cost.tokens)} tokens, {epochs}"
    sampled = "" if epoch.count is None else f", estimated from {epoch.sampled:,} held-out documents"
    yield f"epoch          {_count(epoch.tokens)} tokens in windows of {epoch.documents:,} documents{sampled}"
    yield f"compute        {_number(per_step)} TFLOP per step, forward and backward: {_of_parts(cost)}"
    yield f"               {_number(per_step * config.steps)} TFLOP in all"
    yield f"memory         {_memory(cost)}"
    yield f"activations    {_activations(cost)}"
    yield f"tokens/s       {cost.speed.tokens_per_second:,.0f}, {cost.speed.origin}"
    yield f"time           {cost.hours:,.2f} hours, without evaluations"


def _batches(cost: Cost) -> str:
    batches = f" of {cost.config.accumulate} batches" if cost.config.accumulate > 1 else ""
    return f"{batches}, in windows of {cost.epoch.lengths_W.mean():,.0f} on average"


def _of_parts(cost: Cost) -> str:
    """Return the compute of a training step for each part of the model, as text."""
    step = {part: _number(flop * cost.tokens_per_step / TERA) for part, flop in cost.flop_per_token.items()}
    return ", ".join(f"{part} {tera}" for part, tera in step.items())


def _memory(cost: Cost) -> str:
    """Return the memory that each GPU needs, as text.

    With several GPUs, the text has two values: one for replicas (DDP), and one for shards (FSDP2).
    """
    gpus, states, activations = cost.gpus, sum(cost.state_bytes.values()), cost.activation_bytes
    parts = ", ".join(f"{name} {size / GIGA:,.3g}" for name, size in cost.state_bytes.items())
    if gpus == 1:
        return f"{(states + activations) / GIGA:,.3g} GB: {parts}, activations {activations / GIGA:,.3g}"
    buckets = cost.state_bytes["gradients"]
    replicated, sharded = states + buckets + activations, states / gpus + activations
    parts = f"{parts}, its buckets {buckets / GIGA:,.3g}, activations {activations / GIGA:,.3g}"
    return f"{replicated / GIGA:,.3g} GB per GPU in replicas (DDP): {parts}; {sharded / GIGA:,.3g} GB in shards (FSDP2)"


def _activations(cost: Cost) -> str:
    measured = f"measured on windows of {cost.probe_tokens:,} tokens here, without compilation"
    return f"estimated for {cost.positions_per_gpu:,} positions per GPU; {measured}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"


def _count(tokens: float) -> str:
    return f"{tokens / GIGA:,.2f} billion" if tokens >= GIGA else f"{tokens:,.0f}"
