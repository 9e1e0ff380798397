"""OLMo-core reads an export, and its trainer's loss counts exactly the tokens that the mask lets through."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.label_units import NO_LABEL
from tests.conftest import RunCommand
from tests.export.conftest import exported, whole_windows

data = pytest.importorskip("olmo_core.data", reason="OLMo-core is not installed")
LENGTH = 64


def numpy_dataset(export: Path, length: int, part: str = "tokens") -> Any:
    masks, files = (sorted((export / folder).glob("*.npy")) for folder in ("mask", part))
    settings: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 0, "vocab_size": 8192, "dtype": np.uint16}
    return data.NumpyFSLDataset(*files, sequence_length=length, label_mask_paths=masks, **settings)


def test_the_dataset_has_tokens_labels_and_masks(
    run_command: RunCommand, dataset: Path, expected: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    output = exported(run_command, dataset, tmp_path / "out", "olmo-core", "--train-to", 4.0)
    windows = whole_windows(output / "tokens", "*.npy", 1024)
    for part, values in (("tokens", expected[0]), ("entropy", expected[1].view(np.uint16))):
        read = numpy_dataset(output, 1024, part)
        read.prepare()
        for item, window in zip((read[number] for number in range(len(read))), windows, strict=True):
            np.testing.assert_array_equal(item["input_ids"].numpy(), values[window])
            wanted = (expected[1][window] == NO_LABEL) | (expected[1][window] <= 4 * 128)
            np.testing.assert_array_equal(item["label_mask"].numpy(), wanted)


def looped_loss(model: torch.nn.Module, windows: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the mean loss of the tokens whose label is at most 4 nats or missing, by a loop over tokens."""
    losses = []
    for ids, units in windows:
        with torch.no_grad():
            logprobs_TV = model(torch.from_numpy(ids.astype(np.int64))[None])[0].float().log_softmax(-1)
        for place in range(1, LENGTH):
            if units[place] == NO_LABEL or units[place] <= 4 * 128:
                losses.append(-float(logprobs_TV[place - 1, ids[place]]))
    return sum(losses) / len(losses)


def test_five_steps_train_on_unmasked_tokens_only(
    run_command: RunCommand, dataset: Path, expected: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    from olmo_core.nn.transformer import TransformerConfig
    from olmo_core.optim import AdamWConfig
    from olmo_core.train import Duration, TrainerConfig
    from olmo_core.train.callbacks import Callback
    from olmo_core.train.train_module import TransformerTrainModule

    output = exported(run_command, dataset, tmp_path / "out", "olmo-core", "--train-to", 4.0)
    places = whole_windows(output / "tokens", "*.npy", LENGTH)
    torch.manual_seed(0)
    model = TransformerConfig.llama_like(d_model=32, vocab_size=8192, n_layers=1, n_heads=2).build(init_device="cpu")
    batches: list[list[tuple[np.ndarray, np.ndarray]]] = []
    wanted: list[float] = []
    reported: list[float] = []

    class Losses(Callback):  # type: ignore[misc]
        """A callback that computes each step's loss before the step, and keeps the loss that the trainer reports."""

        def pre_step(self, batch: dict[str, Any]) -> None:
            windows = [places[number] for number in batch["index"].tolist()]
            batches.append([(expected[0][one], expected[1][one]) for one in windows])
            wanted.append(looped_loss(model, batches[-1]))

        def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
            reported.extend(value for name, value in metrics.items() if name == "train/CE loss")

    device = torch.device("cpu")
    optimizer, sizes = AdamWConfig(lr=0.01), {"rank_microbatch_size": 2 * LENGTH, "max_sequence_length": LENGTH}
    module = TransformerTrainModule(model, optim=optimizer, device=device, **sizes)
    settings: dict[str, Any] = {"metrics_collect_interval": 1, "no_checkpoints": True, "no_evals": True}
    config = TrainerConfig(
        save_folder=str(tmp_path / "model"), max_duration=Duration.steps(5), device="cpu", **settings
    )
    loader = data.NumpyDataLoaderConfig(global_batch_size=4 * LENGTH, seed=0, work_dir=str(tmp_path / "work"))
    config.with_callback("losses", Losses()).build(module, loader.build(numpy_dataset(output, LENGTH))).fit()
    assert len(wanted) == len(reported) == 5
    np.testing.assert_allclose(reported, wanted, rtol=1e-5)
    assert looped_loss(model, batches[0]) < wanted[0] - 0.1
