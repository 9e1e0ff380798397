"""Columns of labels that are chosen with --label-columns, from the flag to a dataset that other libraries load."""

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.annotate.config import Config
from pipeline.annotate.prepare import label_columns_for
from pipeline.data.annotated import find_annotations
from pipeline.labels.causal import token_labels
from pipeline.models.causal_lm import prepend_start
from schemas.annotations import COLUMNS_OF_METHOD, ENTROPY, RANK, Method
from schemas.receipts import Plan
from tests.builders import PROVENANCE, sample_texts, write_documents
from tests.conftest import RunCommand
from tests.readme.workspace import write_language_model
from tests.verify.datasets import verified

START = 0  # end of sequence, which the model declares


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    write_documents(folder / "in.parquet", [*sample_texts(5, 300), "", None])
    write_language_model(folder / "model")
    return folder


def annotate(run_command: RunCommand, folder: Path, output: Path, *flags: object) -> int:
    given = ("--input", folder / "in.parquet", "--method", "causal", "--estimator", folder / "model")
    return run_command("pipeline.annotate", *given, "--output", output, "--workers", 0, "--dtype", "float32", *flags)


def test_all_columns_of_a_causal_model_are_written_read_and_verified(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ("entropy", "expected_entropy", "rank")
    assert annotate(run_command, folder, tmp_path / "out", "--label-columns", *columns) == 0
    model = LlamaForCausalLM.from_pretrained(folder / "model").eval()
    dataset = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.num_rows == 7 and dataset[5]["rank"] == dataset[6]["rank"] == []
    for row in dataset.select(range(5)):
        first = slice(model.config.max_position_embeddings - 1)  # tokens of the first window
        ids_1T = torch.tensor([row["input_ids"][first]])
        with torch.no_grad():
            p_TV = model(input_ids=prepend_start(ids_1T, START)).logits[0].softmax(dim=1)
        p_T1 = p_TV.gather(1, ids_1T.T)
        ranks_T, slow_T = torch.tensor(row["rank"][first]), (p_TV > p_T1).sum(dim=1)
        assert ((ranks_T - slow_T).abs() <= 1).all() and (ranks_T == slow_T).float().mean() > 0.99
        np.testing.assert_allclose(row["entropy"][first], -p_T1.squeeze(1).log(), atol=0.005)
        np.testing.assert_allclose(row["expected_entropy"][first], torch.special.entr(p_TV).sum(dim=1), atol=0.005)
    assert verified(tmp_path / "out", capsys, sample=7, estimator=(str(folder / "model"),))[0] == 0
    rank = find_annotations(str(tmp_path / "out")).schema.field("rank").type
    assert str(rank.value_type) == "int32"


def test_by_default_the_expectation_is_written_too_and_entropies_are_the_same_bits(
    folder: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    assert annotate(run_command, folder, tmp_path / "both") == 0
    assert annotate(run_command, folder, tmp_path / "one", "--label-columns", "entropy") == 0
    both, one = (find_annotations(str(tmp_path / name)) for name in ("both", "one"))
    assert {*both.schema.names} - {*one.schema.names} == {"expected_entropy"}
    (rows,), (others,) = (list(each.batches(("entropy",), 0, 7)) for each in (both, one))
    assert rows.equals(others)


def test_a_sample_has_ranks_where_it_has_labels(folder: Path, tmp_path: Path, run_command: RunCommand) -> None:
    flags = ("--label-columns", "entropy", "rank", "--share", 0.3)
    assert annotate(run_command, folder, tmp_path / "out", *flags) == 0
    for batch in find_annotations(str(tmp_path / "out")).batches(("entropy", "rank"), 0, 7):
        entropy, rank = (batch.column(name).flatten() for name in ("entropy", "rank"))
        assert 0 < rank.null_count < len(rank) and rank.is_valid().equals(entropy.is_valid())


@pytest.mark.parametrize(
    ("method", "requested", "said"),
    [
        ("causal", ("rank",), "--label-columns must name entropy"),
        (
            "exact",
            ("entropy", "expected_entropy"),
            "--method exact writes no column expected_entropy; it writes entropy",
        ),
        ("second-order", ("entropy", "rank"), "--method second-order writes no column rank"),
    ],
)
def test_columns_that_a_method_lacks_are_refused(method: Method, requested: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(method=method, label_columns=requested)  # type: ignore[arg-type]


def test_ranks_are_not_moved_to_other_tokens() -> None:
    with pytest.raises(ValueError, match="a rank cannot be moved to the tokens of another tokenizer"):
        label_columns_for(Config(method="causal", label_columns=("entropy", "rank")), True, None)


def test_a_run_of_an_older_version_resumes_with_its_columns() -> None:
    older = Plan(replace(PROVENANCE, method="causal", label_columns=()), (), None, ())
    newer = Plan(replace(PROVENANCE, method="causal", label_columns=("entropy", "rank")), (), None, ())
    assert label_columns_for(Config(method="causal"), False, older) == ()
    assert label_columns_for(Config(method="causal", label_columns=("entropy",)), False, older) == ()
    assert label_columns_for(Config(method="causal"), False, newer) == ("entropy", "rank")
    assert label_columns_for(Config(method="causal"), False, None) == ("entropy", "expected_entropy")
    assert label_columns_for(Config(), False, older) == ("entropy", "expected_entropy")


def test_windows_of_a_long_text_give_all_columns_alike(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder / "model").eval()
    ids_1T = torch.arange(1, 100).unsqueeze(0)
    chosen = replace(PROVENANCE, method="causal", label_columns=COLUMNS_OF_METHOD["causal"])
    all_columns = token_labels(model, ids_1T, START, replace(chosen, top_k=3, sampled_ids=4).label_shapes)
    for settings in ({"top_k": 3}, {"sampled_ids": 4}, {"label_columns": (ENTROPY, RANK)}):
        for name, labels_1T in token_labels(model, ids_1T, START, replace(chosen, **settings).label_shapes).items():
            assert torch.equal(labels_1T, all_columns[name])
