"""A training interrupted at any step resumes bit-identically."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.training import resume
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.trainer import Loss, train
from tests.training.test_trainer import Bigrams, circle, evaluate, loss, metrics

CONFIG = TrainingConfig(steps=12, tokens_per_batch=40, learning_rate=0.1, evaluate_every=4)


class PowerCutError(Exception):
    """Simulated power cut."""


def dropped(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss times a random number, so that it depends on the random state as with dropout."""
    return loss(model, batch) * torch.rand(())


def until(stop: int) -> Loss:
    """Return a loss function whose call number `stop` raises PowerCutError."""
    calls = iter(range(1, stop))

    def interrupted(model: nn.Module, batch: Batch) -> Tensor:
        if next(calls, None) is None:
            raise PowerCutError
        return dropped(model, batch)

    return interrupted


@pytest.mark.parametrize("stops", [(3,), (4, 5), (9, 9, 12), (12,)])
def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    expected, found = Bigrams(), Bigrams()
    expected_metrics = train(expected, circle(), dropped, evaluate, CONFIG, whole)
    for stop in stops:
        before = len(metrics(parts)) * CONFIG.evaluate_every if (parts / "metrics.jsonl").is_file() else 0
        with pytest.raises(PowerCutError):
            train(Bigrams(), circle(), until(stop - before), evaluate, CONFIG, parts)
    last = train(found, circle(), dropped, evaluate, CONFIG, parts)
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [{**record, "seconds": 0} for record in metrics(parts)] == [
        {**record, "seconds": 0} for record in metrics(whole)
    ]
    assert {**last, "seconds": 0} == {**expected_metrics, "seconds": 0}


def test_a_finished_but_unsaved_training_is_not_repeated(tmp_path: Path) -> None:
    first, second = Bigrams(), Bigrams()
    expected = train(first, circle(), loss, evaluate, CONFIG, tmp_path)
    assert train(second, islice(circle(), 0), loss, evaluate, CONFIG, tmp_path) == expected
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def test_kept_states_are_removed_in_the_end(tmp_path: Path) -> None:
    resume.begin(tmp_path / "out", {"rate": 1})
    train(Bigrams(), circle(), loss, evaluate, CONFIG, tmp_path / "out")
    assert (tmp_path / "out" / "unfinished-12.safetensors").is_file()
    resume.finish(tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["metrics.jsonl"]


def test_the_newest_states_are_kept_and_the_newest_readable_one_is_resumed(tmp_path: Path) -> None:
    config = replace(CONFIG, save_every=1, keep=3)
    expected, found = Bigrams(), Bigrams()
    (tmp_path / "whole").mkdir()
    train(expected, circle(), dropped, evaluate, CONFIG, tmp_path / "whole")
    parts = tmp_path / "parts"
    parts.mkdir()
    with pytest.raises(PowerCutError):
        train(Bigrams(), circle(), until(10), evaluate, config, parts)
    kept = ["unfinished-7.safetensors", "unfinished-8.safetensors", "unfinished-9.safetensors"]
    assert sorted(file.name for file in parts.iterdir()) == ["metrics.jsonl", *kept]
    for name, length in ((kept[2], 100), (kept[1], 4)):  # as if a disk had lost their ends
        (parts / name).write_bytes((parts / name).read_bytes()[:length])
    steps = []
    config = replace(config, keep=1)
    train(found, circle(), lambda m, b: steps.append(1) or dropped(m, b), evaluate, config, parts)  # type: ignore[func-returns-value]
    assert len(steps) == CONFIG.steps - 7
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), expected.parameters(), strict=True))
    assert [{**line, "seconds": 0} for line in metrics(parts)] == [
        {**line, "seconds": 0} for line in metrics(tmp_path / "whole")
    ]
    assert [file.name for file in resume.states(parts)] == ["unfinished-12.safetensors"]


def test_an_unreadable_state_does_not_replace_a_readable_one(tmp_path: Path) -> None:
    config = replace(CONFIG, save_every=1, keep=2)
    with pytest.raises(PowerCutError):
        train(Bigrams(), circle(), until(5), evaluate, config, tmp_path)
    for step in (3, 4):
        assert (tmp_path / f"unfinished-{step}.safetensors").is_file()
    (tmp_path / "unfinished-9.safetensors").write_bytes(b"")  # as if a disk had lost it
    with pytest.raises(PowerCutError):
        train(Bigrams(), circle(), until(2), evaluate, replace(config, keep=1), tmp_path)
    assert [file.name for file in resume.states(tmp_path)] == ["unfinished-5.safetensors"]
    train(Bigrams(), circle(), dropped, evaluate, config, tmp_path)


def test_unreadable_states_do_not_restart_a_training_silently(tmp_path: Path) -> None:
    (tmp_path / "unfinished-3.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the states in .* can be read; delete the folder"):
        train(Bigrams(), circle(), loss, evaluate, CONFIG, tmp_path)


def test_a_line_of_metrics_cut_off_by_a_power_cut_is_rewritten(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        train(Bigrams(), circle(), until(7), evaluate, replace(CONFIG, save_every=1), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"step": 8, "tok')
    train(Bigrams(), circle(), dropped, evaluate, CONFIG, tmp_path)
    assert [line["step"] for line in metrics(tmp_path)] == [4, 8, 12]


def test_settings_outside_the_fingerprint_may_change() -> None:
    changed = replace(CONFIG, save_every=3, keep=9)
    assert changed.fingerprint == CONFIG.fingerprint and replace(CONFIG, accumulate=2).fingerprint != CONFIG.fingerprint


def test_only_the_same_settings_resume(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):
        resume.begin(output, {"rate": 0.1, "folder": tmp_path})
    resume.begin(output, {"rate": 0.3, "folder": tmp_path})  # no step was taken
    resume.begin(output, {"rate": 0.1, "folder": tmp_path})
    (output / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"another unfinished training \(rate 0.1 there, 0.2 now\)"):
        resume.begin(output, {"rate": 0.2, "folder": tmp_path})
    (output / "unfinished.json").unlink()
    (output / "model").touch()
    with pytest.raises(ValueError, match="is there already"):
        resume.begin(output, {"rate": 0.1})


@pytest.mark.parametrize("content", ["", "{", "[1]", "5", "[" * 10**5])
def test_settings_must_be_a_json_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "unfinished.json").write_text(content, encoding="utf-8")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"unfinished.json is damaged .*delete .* or choose another folder"):
        resume.begin(tmp_path, {"rate": 0.1})


def test_a_pickle_and_files_with_other_names_are_not_states(tmp_path: Path) -> None:
    torch.save({"model weight": torch.zeros(3)}, tmp_path / "unfinished-3.safetensors")
    (tmp_path / "unfinished-x.safetensors").touch()
    assert [file.name for file in resume.states(tmp_path)] == ["unfinished-3.safetensors"]
    with pytest.raises(ValueError, match=r"none of the states in .* can be read"):
        train(Bigrams(), circle(), loss, evaluate, CONFIG, tmp_path)


BROKEN_METADATA = [None, {}, {"place": "{"}, {"place": "[]"}, {"place": '{"steps": 1}'}, {"place": '{"step": "x"}'}]


@pytest.mark.parametrize("metadata", BROKEN_METADATA)
def test_a_state_without_its_progress_is_refused_by_name(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    with pytest.raises(PowerCutError):
        train(Bigrams(), circle(), until(3), evaluate, replace(CONFIG, save_every=1), tmp_path)
    *_, file = resume.states(tmp_path)
    save_file(load_file(file), file, metadata=metadata)
    with pytest.raises(ValueError, match=f"{file.name} holds no state of this training .*; delete the folder"):
        train(Bigrams(), circle(), loss, evaluate, CONFIG, tmp_path)


def test_a_state_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        train(Bigrams(), circle(), until(3), evaluate, replace(CONFIG, save_every=1), tmp_path)
    *_, file = resume.states(tmp_path)
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
    save_file({name: torch.zeros(3, 3) for name in load_file(file)}, file, metadata=metadata)
    with pytest.raises(ValueError, match=f"{file.name} holds no state of this training"):
        train(Bigrams(), circle(), loss, evaluate, CONFIG, tmp_path)
