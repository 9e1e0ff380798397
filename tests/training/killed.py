"""A small training as a command: `python -m tests.training.killed OUTPUT`. Each step is a line on standard output."""

import sys
from pathlib import Path

from torch import Tensor, nn

from pipeline.training import resume
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import train
from tests.training.test_loop import Bigrams, circle, figures
from tests.training.test_resume import dropped

CONFIG = TrainingConfig(steps=200, tokens_per_batch=40, accumulate=2, learning_rate=0.1, evaluate_every=7, save_every=1)


def main(output: Path) -> None:
    resume.begin(output, CONFIG.decisive)

    def loud(model: nn.Module, batch: Batch) -> Tensor:
        print("step", flush=True)
        return dropped(model, batch)

    train(Bigrams(), circle(), loud, figures, CONFIG, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
