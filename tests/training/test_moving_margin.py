"""Moving margin: the nats that are added to labels change from `first` to 0 in the first half of a training.

In the second half, nothing is added. Missing labels stay missing.
"""

import pytest
import torch

from pipeline.training.batches import Batch
from pipeline.training.moving_margin import MovingMargin


def test_labels_arrive_halfway_in_equal_steps() -> None:
    margin = MovingMargin(first=-2.0, steps=8)
    assert [margin.at(step) for step in range(8)] == pytest.approx([-2, -1.5, -1, -0.5, 0, 0, 0, 0])


def test_only_labels_change_and_missing_ones_stay_missing() -> None:
    labels_BT = torch.tensor([[1.0, torch.nan, 3.0]])
    batch = Batch(torch.tensor([[4, 5, 6]]), torch.tensor([3]), labels_BT)
    moved = MovingMargin(first=1.0, steps=4)(batch, 1)
    assert moved.labels_BT is not None
    torch.testing.assert_close(moved.labels_BT, torch.tensor([[1.5, torch.nan, 3.5]]), equal_nan=True)
    assert moved.input_ids_BT is batch.input_ids_BT and batch.labels_BT is labels_BT
