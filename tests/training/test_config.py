"""Fingerprint of training settings, and refused settings."""

import pytest

from pipeline.training import config
from pipeline.training.config import TrainingConfig


def test_a_training_older_than_the_choice_of_kernels_resumes() -> None:
    assert "cross_entropy" not in TrainingConfig().fingerprint


def test_the_choice_of_a_kernel_is_in_the_fingerprint_and_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: object())
    assert TrainingConfig(cross_entropy="cut-cross-entropy").fingerprint["cross_entropy"] == "cut-cross-entropy"
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"is not installed; install it with pip install 'token-entropy\[kernels\]'"):
        TrainingConfig(cross_entropy="cut-cross-entropy")
