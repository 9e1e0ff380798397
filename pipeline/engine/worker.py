"""The Ray actor that labels units, one a GPU, or one a CPU core where there is no GPU."""

import ray
import torch

from pipeline.data.tokenizer import load_tokenizer
from pipeline.engine.annotation import Annotator, Run
from pipeline.engine.labelling import load_labeller
from pipeline.engine.ledger import Receipt
from pipeline.engine.plan import Unit


@ray.remote(max_restarts=-1, max_task_retries=0)
class Worker:
    """Its constructor does nothing that can fail: Ray does not retry an error there."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.annotator: Annotator | None = None

    def annotate(self, unit: Unit) -> Receipt:
        """Labels a unit and returns its receipt, after the shard is committed; the first call loads the model."""
        if self.annotator is None:
            self.annotator = load_annotator(self.run)
        return self.annotator.annotate(unit)


def load_annotator(run: Run) -> Annotator:
    """The run's checkpoint on this worker's GPU, or on one core: a label must not depend on how many there are."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    labeller = load_labeller(run.provenance.method, run.checkpoint, device)
    return Annotator(run, labeller, load_tokenizer(run.tokenizer) if run.tokenizer else None)
