"""Training of a second-order model that starts from a language model.

Before the first training step, the model must give the labels that pipeline.annotate makes with the language model. The
labels are made with a window and a start token that are not the defaults.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from jobs.train_second_order import Config, Prepared, initial_model, read_documents
from pipeline.data.annotated import find_annotations
from pipeline.data.loader import labelled_rows
from pipeline.data.tokenizer import train_byte_pairs
from pipeline.models.loading import load_second_order
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.sizes import SecondOrderSizes
from pipeline.training.batches import Batch
from pipeline.training.distillation import StoredTargets, top_k_targets
from pipeline.training.evaluation import held_out_batches, r_squared, second_order_metrics
from schemas.annotations import PREDICTED
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.families import FAMILIES, tiny_of_family
from tests.tiny_models import frozen

CONTEXT, WINDOW, OVERLAP = 32, 24, 7
START = "!"
LONG = 300  # characters, of a few windows each
ANNOTATE = ("pipeline.annotate", "--workers", 0, "--dtype", "float32", "--method", "causal")
WINDOWS = ("--window", WINDOW, "--overlap", OVERLAP, "--start-token", START)
TRAIN = ("jobs.train_second_order", "--training.steps", 1, "--training.learning-rate", 1e-9)


def save_causal(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model with a tokenizer that declares another start token than `START`."""
    model.save_pretrained(folder)
    train_byte_pairs(sample_texts(8), 300).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents") / "few.parquet", sample_texts(8, LONG))


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    return save_causal(tiny_of_family("gemma 2, soft cap", vocabulary=320, context=CONTEXT), tmp_path / "causal")


def before_the_first_step(config: Config) -> tuple[SecondOrderModel, float, float]:
    """Return the job's model before training, and two values of R² in the job's windows.

    The first R² is for the seeing output, which has read the token. The second R² is for the language model's loss.
    Both compare with the labels of the held-out documents.
    """
    plan = Prepared.of(config)
    seen, held_out = read_documents(plan)
    model = frozen(initial_model(plan, plan.starts[0], seen.given_labels))
    figures = second_order_metrics(model, held_out_batches(held_out, plan.windowing, model.device))
    own, labels = zip(*losses_and_labels(model, held_out_batches(held_out, plan.windowing, model.device)), strict=True)
    return model, figures["r2_seeing"], r_squared(torch.cat(own), torch.cat(labels))


def losses_and_labels(model: SecondOrderModel, batches: Iterator[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        assert batch.labels_BT is not None
        labelled_BT = ~batch.labels_BT.isnan()
        yield model(batch.input_ids_BT, with_surprisal=True).losses_BT[labelled_BT], batch.labels_BT[labelled_BT]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_starts_as_the_one_that_made_its_labels(
    family: str, run_command: RunCommand, documents: Path, tmp_path: Path
) -> None:
    folder = save_causal(tiny_of_family(family, vocabulary=320, context=CONTEXT), tmp_path / "causal")
    labels = tmp_path / "labels"
    assert run_command(*ANNOTATE, *WINDOWS, "--estimator", folder, "--input", documents, "--output", labels) == 0
    given = find_annotations(str(labels)).corpus().given_labels
    assert given.std() > 0.3, "labels too much alike to tell anything"
    config = Config(labels=str(labels), output=tmp_path / "out", init_from=str(folder), held_out=4)
    model, seeing, own = before_the_first_step(config)
    assert seeing >= 0.9999 and own >= 0.9999
    assert (model.config.context, model.config.start_token, model.config.gain) == (WINDOW, 1, True)
    model, _, own = before_the_first_step(replace(config, form="direct"))
    assert own >= 0.9999 and not model.config.gain


def test_other_windows_or_another_start_token_change_the_model(
    run_command: RunCommand, documents: Path, causal: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels"
    assert run_command(*ANNOTATE, *WINDOWS, "--estimator", causal, "--input", documents, "--output", labels) == 0
    config = Config(labels=str(labels), output=tmp_path / "out", init_from=str(causal), held_out=4)
    shorter = replace(config, model=SecondOrderSizes(context=WINDOW - 1))
    for changed in (shorter, replace(config, overlap=OVERLAP + 1), replace(config, start_token="<|endoftext|>")):
        _, seeing, _ = before_the_first_step(changed)
        assert seeing < 0.999, changed


def test_the_command_uses_and_reports_the_windows_of_the_subset(
    run_command: RunCommand, documents: Path, causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, output, again = tmp_path / "labels", tmp_path / "second", tmp_path / "again"
    annotate = (*ANNOTATE, "--estimator", causal, "--input", documents, "--output", labels)
    assert run_command(*annotate, *WINDOWS, "--subset", "narrow") == 0
    assert run_command(*annotate, "--subset", "whole") == 0
    train = (*TRAIN, "--init-from", causal, "--held-out", 4)
    assert run_command(*train, "--labels", labels / "data" / "narrow", "--output", output) == 0
    told = "24 tokens after token 1, 7 of them shared with the next window"
    assert f"windows of {told}" in capsys.readouterr().err
    assert f"| windows | {told} |" in (output / "README.md").read_text(encoding="utf-8")
    assert json.loads((output / "metrics.jsonl").read_text(encoding="utf-8"))["r2_seeing"] >= 0.9999
    assert load_second_order(output).config.context == WINDOW
    second = ("pipeline.annotate", "--workers", 0, "--dtype", "float32", "--estimator", output, "--overlap", OVERLAP)
    assert run_command(*second, "--input", documents, "--output", again) == 0
    ours, theirs = (find_annotations(str(place)).corpus() for place in (again, labels / "data" / "narrow"))
    assert abs(ours.given_labels - theirs.given_labels).max() < 0.02  # two roundings and a step
    whole = Config(labels=str(labels / "data" / "whole"), output=tmp_path / "out", init_from=str(causal))
    assert str(Prepared.of(whole).windows) == "32 tokens after token 0, 16 of them shared with the next window"


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_an_adapter_of_a_language_model_is_trained_on_its_labels_and_labels_like_it(
    tuning: str, run_command: RunCommand, documents: Path, causal: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft") if tuning == "lora" else None
    labels, adapter = tmp_path / "labels", tmp_path / "adapter"
    assert run_command(*ANNOTATE, *WINDOWS, "--estimator", causal, "--input", documents, "--output", labels) == 0
    settings = ("--backbone.tuning", tuning, "--backbone.lora-rank", 2, "--held-out", 2)
    assert run_command(*TRAIN, "--labels", labels, "--init-from", causal, *settings, "--output", adapter) == 0
    assert r"| the expecting output learned | expected\_entropy |" in (adapter / "README.md").read_text(
        encoding="utf-8"
    )
    read = find_annotations(str(labels)).corpus(expected=True)
    rows = pq.read_table(next((labels / "data" / "causal").glob("*.parquet"))).column("expected_entropy")
    assert read.expected_N is not None and read.expected_N.tolist() == [
        nats for row in rows.to_pylist() for nats in row
    ]
    assert (adapter / "model.safetensors").stat().st_size < (causal / "model.safetensors").stat().st_size / 2
    again = ("pipeline.annotate", "--workers", 0, "--dtype", "float32", "--estimator", adapter, "--input", documents)
    assert run_command(*again, "--overlap", OVERLAP, "--output", tmp_path / "again") == 0
    own_N, theirs_N = (find_annotations(str(tmp_path / name)).corpus().given_labels for name in ("labels", "again"))
    assert r_squared(torch.from_numpy(theirs_N), torch.from_numpy(own_N)) > 0.98


@pytest.mark.parametrize("settings", [("--form", "direct"), ("--form", "residual"), ("--backbone.tuning", "lora")])
def test_a_second_order_model_is_trained_further_from_its_own_estimates(
    settings: tuple[str, ...], run_command: RunCommand, documents: Path, causal: Path, tmp_path: Path
) -> None:
    """A second training starts from the model of a first training, on labels with another mean and deviation.

    Before its first step, the model of the second training must give the same estimates as the model of the first.
    """
    pytest.importorskip("peft") if "lora" in settings else None
    labels, first = tmp_path / "labels", tmp_path / "first"
    assert run_command(*ANNOTATE, *WINDOWS, "--estimator", causal, "--input", documents, "--output", labels) == 0
    train = ("jobs.train_second_order", "--labels", labels, "--held-out", 2, "--training.learning-rate", 0.01)
    start = (*train, "--init-from", causal, "--training.steps", 4, "--output", first)
    assert run_command(*start, *settings, *(("--backbone.lora-rank", 2) if "lora" in settings else ())) == 0
    form = "direct" if "direct" in settings else "residual"
    config = Config(labels=str(labels), output=tmp_path / "out", init_from=str(first), held_out=2, form=form)  # type: ignore[arg-type]
    plan = Prepared.of(config)
    assert (plan.windows.window, plan.windows.start) == (WINDOW, 1)
    model, given = load_second_order(first), find_annotations(str(labels)).corpus().given_labels
    ids_BT = torch.arange(40).view(2, 20)
    further = initial_model(plan, plan.starts[0], 3 * given - 5)
    assert further.config.label_deviation != model.config.label_deviation and further.training
    with torch.no_grad():
        for one, other in zip(further.entropies(ids_BT), model.entropies(ids_BT), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    trained = {name for name, weight in further.named_parameters() if weight.requires_grad}
    assert trained == set(load_file(first / "model.safetensors"))
    output = tmp_path / "further"
    assert run_command(*train, "--init-from", first, "--form", form, "--training.steps", 1, "--output", output) == 0
    assert f"| started from | {first!s} |" in (output / "README.md").read_text(encoding="utf-8").replace("\\", "")
    assert (output / "model.safetensors").stat().st_size == (first / "model.safetensors").stat().st_size


def test_a_second_order_model_keeps_its_form(
    run_command: RunCommand, documents: Path, causal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, first = tmp_path / "labels", tmp_path / "first"
    assert run_command(*ANNOTATE, *WINDOWS, "--estimator", causal, "--input", documents, "--output", labels) == 0
    train = (*TRAIN, "--labels", labels, "--held-out", 2, "--output")
    assert run_command(*train, first, "--init-from", causal, "--form", "direct") == 0
    for flags, message in (
        ((), f"{first} keeps its outputs; give --form direct --transformers 1"),
        (("--form", "direct", "--start-token", "!"), "needs a causal language model"),
        (("--form", "direct", "--model.context", CONTEXT), f"reads at most {WINDOW}"),
    ):
        assert run_command(*train, tmp_path / "out", "--init-from", first, *flags) != 0
        assert message in " ".join(capsys.readouterr().err.split())


def test_the_model_learns_the_predictions_in_its_labels(
    documents: Path, causal: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    """A share of the tokens has neither a label nor a prediction."""
    label = (*ANNOTATE, "--estimator", causal, "--input", documents, *WINDOWS, "--share", 0.7)
    assert run_command(*label, "--top-k", 5, "--output", tmp_path / "labels") == 0
    dataset = find_annotations(str(tmp_path / "labels"))
    stored, first = StoredTargets.of(dataset, 6), 0
    assert 0 < stored.labelled_N.mean() < 1
    for row in islice(labelled_rows(dataset, PREDICTED), 6):
        targets = top_k_targets(*(torch.from_numpy(row[name]) for name in PREDICTED))
        positions_N = torch.arange(first, first + len(targets.rest_N))
        first += len(positions_N)
        for mine, given in zip(stored(positions_N), targets, strict=True):
            torch.testing.assert_close(mine, given, atol=1e-6, rtol=1e-5)
    train = (*TRAIN, "--labels", tmp_path / "labels", "--init-from", causal, "--held-out", 2)
    assert run_command(*train, "--distil", "--output", tmp_path / "nothing", "--dry-run") == 0
    assert not (tmp_path / "nothing").exists()
    for flags, output in (((), "plain"), (("--distil",), "distilled")):
        assert run_command(*train, *flags, "--output", tmp_path / output) == 0
    plain, distilled = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("plain", "distilled"))
    assert plain["r2_seeing"] == pytest.approx(distilled["r2_seeing"], abs=1e-3)
    assert abs(plain["training_loss"] - distilled["training_loss"]) > 1e-3
    assert "the labeller's predictions" in (tmp_path / "distilled" / "README.md").read_text(encoding="utf-8")


def test_predictions_to_distil_must_be_there_and_weigh_something(
    documents: Path, causal: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    assert run_command(*ANNOTATE, "--estimator", causal, "--input", documents, "--output", tmp_path / "labels") == 0
    with pytest.raises(ValueError, match="has no predictions to distil; annotate with --method causal --top-k 50"):
        StoredTargets.of(find_annotations(str(tmp_path / "labels")))
    for settings in ({"causal_weight": 0.0}, {"folds": 2}):
        with pytest.raises(ValueError, match="--distil needs a --causal-weight above 0 and a single fold"):
            Config(labels="labels", output=Path("out"), distil=True, **settings)
