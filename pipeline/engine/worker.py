"""The Ray actor that labels units, one a GPU, or one a CPU core where there is no GPU."""

import ray
import torch

from pipeline.data.tokenizer import load_tokenizer
from pipeline.engine.annotation import Run, annotate_unit
from pipeline.engine.labelling import load_labeller
from pipeline.engine.ledger import Receipt
from pipeline.engine.plan import Unit


@ray.remote(max_restarts=-1, max_task_retries=0)
class Worker:
    """Its constructor does nothing that can fail: Ray does not retry an error there."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.loaded = False

    def annotate(self, unit: Unit) -> Receipt:
        """Labels a unit and returns its receipt, after the shard is committed."""
        if not self.loaded:
            self._load()
        return annotate_unit(unit, self.run, self.labeller, self.tokenizer)

    def _load(self) -> None:
        torch.set_num_threads(1)  # a label must not depend on how many cores a worker happens to have
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.labeller = load_labeller(self.run.provenance.method, self.run.checkpoint, device)
        self.tokenizer = load_tokenizer(self.run.tokenizer) if self.run.tokenizer else None
        self.loaded = True
