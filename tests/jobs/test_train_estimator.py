"""Estimators around a language model, trained by one command and used for labels by another."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from jobs.train_estimator import Config, new_model, read_documents
from pipeline.data.annotated import find_annotations
from pipeline.data.tokenizer import named_token
from pipeline.labels import causal
from pipeline.labels.exact import token_entropies
from pipeline.models.loading import load_causal, load_estimator
from pipeline.models.sizes import BackboneSettings, EstimatorSizes
from pipeline.training.data import DocumentSettings
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.families import tiny_of_family
from tests.jobs.test_train_second_order import save_causal
from tests.smollm2 import INSTALLED

TRAINING = ("--training.steps", 4, "--training.evaluate-every", 2, "--training.tokens-per-batch", 512)
SMALL = ("--model.context", 24, "--model.bottleneck-width", 3, "--held-out", 2)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents") / "few.parquet", sample_texts(8, 200))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_of_family("gemma 2, soft cap", vocabulary=320, context=32)
    return save_causal(model, tmp_path_factory.mktemp("models") / "causal")


def test_the_first_losses_are_those_of_the_language_model(documents: Path, language_model: Path) -> None:
    config = Config(
        documents=DocumentSettings(input=(str(documents),), held_out=2),
        output=Path("never written"),
        init_from=str(language_model),
        start_token="!",
        model=EstimatorSizes(context=24, bottleneck_width=3),
    )
    read = read_documents(config.documents, config.starting_point)
    estimator = new_model(read, config.starting_point, config)
    start = named_token(language_model, "!")
    ids_BT = torch.from_numpy(read.held_out.tokens_N[:48]).long().view(2, 24)
    own_BT = causal.token_entropies(load_causal(language_model), ids_BT, start)
    assert (estimator.token_losses(ids_BT) - own_BT).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("--backbone.tuning", "lora", "--backbone.lora-rank", 2),
        ("--backbone.tuning", "whole", "--backbone.entry", "every-token", "--backbone.entry-layer", 1),
        ("--backbone.entry", "start-token", "--backbone.hold"),
    ],
    ids=["frozen", "lora", "whole", "held"],
)
def test_a_trained_estimator_labels(
    settings: tuple[object, ...], run_command: RunCommand, documents: Path, language_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft") if "lora" in settings else None
    train = ("jobs.train_estimator", "--init-from", language_model, "--input", documents, *SMALL, *TRAINING, *settings)
    assert run_command(*train, "--output", tmp_path / "estimator") == 0
    figures = [json.loads(line) for line in (tmp_path / "estimator" / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in figures] == [2, 4]
    card = (tmp_path / "estimator" / "README.md").read_text(encoding="utf-8")
    assert f"{language_model}, sha256" in card and "trained parameters" in card
    label = ("pipeline.annotate", "--workers", 0, "--dtype", "float32", "--method", "exact", "--input", documents)
    assert run_command(*label, "--estimator", tmp_path / "estimator", "--output", tmp_path / "labels") == 0
    labels_N = find_annotations(str(tmp_path / "labels")).corpus().given_labels
    assert len(labels_N) > 500
    verify = ("pipeline.verify", tmp_path / "labels", "--sample", 3, "--estimator", tmp_path / "estimator")
    assert run_command(*verify) == 0


def test_an_interrupted_run_saves_trained_weights_alone_and_resumes_to_the_same_model(
    run_command: RunCommand, documents: Path, language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("jobs.train_estimator", "--init-from", language_model, "--input", documents, *SMALL, *TRAINING)
    assert run_command(*train, "--output", tmp_path / "whole") == 0
    with monkeypatch.context() as patched:

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("pipeline.training.job.save_checkpoint", interrupted)
        assert run_command(*train, "--output", tmp_path / "resumed") != 0
    (*_, state) = sorted((tmp_path / "resumed").glob("unfinished-*.safetensors"))
    with safe_open(state, "pt") as stored:
        weights = {name.removeprefix("model ") for name in stored.keys() if name.startswith("model ")}  # noqa: SIM118
    assert {name.split(".")[0] for name in weights} == {"down", "up", "introduce"}
    state.unlink()  # so that two steps remain
    assert run_command(*train, "--output", tmp_path / "resumed") == 0
    whole, resumed = (load_estimator(tmp_path / name).state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_dry_run_counts_a_frozen_language_model_once(
    run_command: RunCommand, documents: Path, language_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ("jobs.train_estimator", "--init-from", language_model, "--input", documents, *SMALL, *TRAINING)
    totals = {}
    for tuning in ("frozen", "whole"):
        capsys.readouterr()
        assert run_command(*train, "--output", "never", "--dry-run", "--backbone.tuning", tuning) == 0
        totals[tuning] = capsys.readouterr().out
    assert totals["frozen"] != totals["whole"]
    assert all("encoder" in said and "vocabulary" in said for said in totals.values())


def test_settings_of_a_language_model_need_one(documents: Path) -> None:
    config = Config(
        documents=DocumentSettings(input=(str(documents),)), output=Path(), backbone=BackboneSettings(tuning="whole")
    )
    with pytest.raises(ValueError, match="--backbone needs a causal language model"):
        _ = config.starting_point


@pytest.mark.pretrained
@pytest.mark.skipif(not INSTALLED, reason="`make pretrained` was not run")
def test_an_estimator_around_smollm2_begins_with_its_losses_and_has_exact_labels(documents: Path) -> None:
    config = Config(
        documents=DocumentSettings(input=(str(documents),), held_out=2),
        output=Path("never written"),
        init_from="smollm2",
        start_token="<|endoftext|>",
        model=EstimatorSizes(context=64),
    )
    read = read_documents(config.documents, config.starting_point)
    estimator = new_model(read, config.starting_point, config)
    estimator.eval()  # type: ignore[no-untyped-call]
    ids_1T = torch.from_numpy(read.held_out.tokens_N[:24]).long().unsqueeze(0)
    assert config.starting_point is not None
    start = named_token(config.starting_point.folder, "<|endoftext|>")
    own_1T = causal.token_entropies(load_causal(config.starting_point.folder), ids_1T, start)
    assert (estimator.token_losses(ids_1T) - own_1T).abs().max() <= 1e-5
    (weight,) = (weight for name, weight in estimator.named_parameters() if name == "introduce.weight")
    torch.nn.init.normal_(weight, std=0.02)
    with torch.no_grad():
        codes = [estimator.token_losses(ids_1T[:, :length]).double().sum() for length in range(1, 25)]
    slow_T = torch.stack(codes).diff(prepend=torch.zeros(1, dtype=torch.float64)).float()
    labels_1T = token_entropies(estimator, ids_1T)
    assert (labels_1T[0] - slow_T).abs().max() <= 1e-3
    assert (labels_1T - own_1T).abs().max() > 0.01
