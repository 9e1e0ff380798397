"""The Ray actor that labels units, one a GPU, or one a CPU core where there is no GPU."""

import ray
import torch

from pipeline.data.tokenizer import load_tokenizer
from pipeline.engine.annotation import Annotator, Run
from pipeline.engine.labelling import load_labeller
from pipeline.engine.ledger import Receipt
from pipeline.engine.plan import Unit


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    """Its constructor does nothing that can fail: the driver learns of an error only from a method.

    Ray restarts nothing by itself: a call to a restarting actor fails at once, so the driver starts another one.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def load(self) -> None:
        """Puts the checkpoint on this worker's GPU, or on one core: labels must not depend on how many there are."""
        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        settings = self.run.provenance
        labellers = tuple(
            load_labeller(settings.method, checkpoint, device, settings.dtype, settings.start_token)
            for checkpoint in self.run.checkpoints
        )
        tokenizer = load_tokenizer(self.run.tokenizer) if self.run.tokenizer else None
        other = load_tokenizer(self.run.estimator_tokenizer) if self.run.estimator_tokenizer else None
        self.annotator = Annotator(self.run, labellers, tokenizer, other)

    def annotate(self, unit: Unit) -> Receipt:
        """Labels a unit and returns its receipt, after the shard is committed."""
        return self.annotator.annotate(unit)
