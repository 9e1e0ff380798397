"""Windows in which labels are learned: chosen from the labels' provenance, the starting models and the flags."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.models.checkpoint import SHIPPED, Checkpoint, copy_tokenizer
from pipeline.training.label_windows import LabelWindows, label_windows
from tests.builders import PROVENANCE
from tests.tiny_models import tiny_estimator, tiny_language_model

EXACT = replace(PROVENANCE, window=24, overlap=5)
CAUSAL = replace(EXACT, method="causal", start_token=7)
MOVED = replace(CAUSAL, estimator_tokenizer_sha256="e" * 64)
NOTHING: dict[str, Any] = {"context": None, "overlap": None, "start": None}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three models. `causal` has start token 5. `small` has start token 0, and `!` is its token 1."""
    folder = tmp_path_factory.mktemp("models")
    tiny_language_model(context=32).save_pretrained(folder / "causal")
    tiny_language_model(context=16, vocabulary=8193).save_pretrained(folder / "small")
    copy_tokenizer(SHIPPED / "tokenizer", folder / "small")
    tiny_estimator(context=30).save_pretrained(folder / "estimator")
    return folder


@pytest.mark.parametrize(
    ("made", "start", "flags", "expected"),
    [
        (CAUSAL, "causal", {}, LabelWindows(24, 5, 7)),
        (EXACT, "causal", {}, LabelWindows(24, 5, 5)),
        (EXACT, "estimator", {}, LabelWindows(24, 5, None)),
        (CAUSAL, "estimator", {}, LabelWindows(24, 5, None)),
        (CAUSAL, None, {}, LabelWindows(24, 5, None)),
        (MOVED, "causal", {}, LabelWindows(32, 16, 5)),
        (MOVED, "estimator", {}, LabelWindows(30, 15, None)),
        (MOVED, None, {}, LabelWindows(24, 12, None)),
        (CAUSAL, "causal", {"context": 10}, LabelWindows(10, 5, 7)),
        (CAUSAL, "causal", {"context": 24}, LabelWindows(24, 5, 7)),
        (CAUSAL, "causal", {"overlap": 0}, LabelWindows(24, 0, 7)),
        (CAUSAL, "small", {"context": 16, "overlap": 3, "start": "!"}, LabelWindows(16, 3, 1)),
        (CAUSAL, None, {"context": 1000}, LabelWindows(1000, 500, None)),
    ],
)
def test_windows_are_those_of_the_labels_unless_flags_say_otherwise(
    made: Any, start: str | None, flags: dict[str, Any], expected: LabelWindows, models: Path
) -> None:
    member = None if start is None else Checkpoint(models / start)
    assert label_windows(made, (member,), **{**NOTHING, **flags}) == expected


@pytest.mark.parametrize(
    ("made", "start", "flags", "message"),
    [
        (CAUSAL, "small", {}, "the labels have windows of 24 tokens, but .*small reads at most 16; give `model.conte"),
        (CAUSAL, "estimator", {"context": 31}, "`model.context` is 31 tokens, but .*estimator reads at most 30"),
        (CAUSAL, "causal", {"overlap": 24}, "`overlap` must be at least 0 and below the window of 24 tokens, not 24"),
        (CAUSAL, "causal", {"overlap": -1}, "`overlap` must be at least 0"),
        (CAUSAL, "estimator", {"start": "!"}, "`start_token` needs a causal language model in `init_from`; leave it"),
        (CAUSAL, None, {"start": "!"}, "`start_token` needs a causal language model in `init_from`; leave it out"),
        (CAUSAL, "small", {"context": 16, "start": "absent"}, "`start_token` absent is not a token of .*small"),
        (replace(CAUSAL, start_token=97), "causal", {}, "token 97 before each window, but .*causal has only 97 ids"),
    ],
)
def test_what_a_model_cannot_read_is_refused(
    made: Any, start: str | None, flags: dict[str, Any], message: str, models: Path
) -> None:
    member = None if start is None else Checkpoint(models / start)
    with pytest.raises(ValueError, match=message):
        label_windows(made, (member,), **{**NOTHING, **flags})


def test_the_shortest_context_of_several_folds_decides(models: Path) -> None:
    members = (Checkpoint(models / "causal"), Checkpoint(models / "small"))
    with pytest.raises(ValueError, match="small reads at most 16"):
        label_windows(CAUSAL, members, **NOTHING)
    assert label_windows(CAUSAL, members, 16, None, None) == LabelWindows(16, 8, 7)
