"""Audit of a language model whose predictions are the true probabilities of a Markov chain.

The audit prints tables and writes files. They have figures for each document and for each value of a column, and the
difference from the figures of unseen text.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.tokenizer import encode, load_tokenizer, tokenizer_sha256
from pipeline.experiments.sources import Drawn, MarkovChain, draw, rows_of_different_entropy
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from pipeline.models.loading import save_checkpoint
from tests.annotated import write_annotated
from tests.builders import sample_texts
from tests.conftest import RunCommand
from tests.tiny_models import chain_language_model, tiny_language_model

JOB = "jobs.audit"
SYMBOLS, TOKENS, CONTEXT = 31, 40, 16
TABLE = rows_of_different_entropy(SYMBOLS, SYMBOLS, np.random.default_rng(0))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    chain_language_model(TABLE, context=CONTEXT).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def drawn(documents: int, seed: int) -> Drawn:
    return draw(MarkovChain(TABLE), documents, TOKENS, np.random.default_rng(seed))


def write_planted(folder: Path) -> Path:
    """Write 20 documents of the chain and a copy of the first one.

    The labels are the surprisals under the chain. In the documents of site b, 1 nat is added to each label.
    """
    found = drawn(20, 1)
    tokens, nats = [*found.tokens_MT.tolist()] * 2, [*found.surprisal_MT] * 2
    sites = [None if row == 20 else "b" if row % 2 else "a" for row in range(21)]
    high = [(nats[row] + (site == "b")).tolist() for row, site in enumerate(sites)]
    names = [f"doc|{row}" for row in range(21)]
    columns: dict[str, list[str | None]] = {"site": sites, "id": [*names]}
    return write_annotated(
        folder, tokens[:21], high, shards=2, columns_of_source=columns, vocabulary=SYMBOLS, tokenizer_sha256=None
    )


def table_rows(printed: str) -> dict[str, list[str]]:
    """Parse the Markdown tables in a text. Return the remaining cells of each row, by the row's first cell."""
    lines = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): cells[1:] for cells in lines}


def test_figures_are_printed_and_written_by_document_and_by_a_column(
    run_command: RunCommand, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model predicts the chain's true probabilities, so its losses are the true surprisals.

    The labels are the surprisals plus known amounts: 1 nat in site b, and 0.25 nats in the unseen text. The audit must
    report these amounts as memorised.
    """
    labels, unseen, output = write_planted(tmp_path / "labels"), drawn(30, 2), tmp_path / "out"
    of_tokens: dict[str, Any] = {"vocabulary": SYMBOLS, "tokenizer_sha256": None}
    reference = write_annotated(
        tmp_path / "unseen", unseen.tokens_MT.tolist(), (unseen.surprisal_MT + 0.25).tolist(), **of_tokens
    )
    flags = ("--model", model, "--labels", labels, "--by", "site", "--show", 4)
    assert run_command(JOB, *flags, "--reference", reference, "--output", output) == 0
    printed = capsys.readouterr().out
    assert printed == (output / "results.md").read_text(encoding="utf-8") + "\n"
    assert "Audited: 21 documents, 20 of them distinct." in printed and "Unseen text: 30 documents" in printed
    assert f"Made by `python -m {JOB} --model {model}" in printed

    rows = table_rows(printed)
    names = ("all documents", "site a", "site b", "site null", "unseen text")
    sizes = [("21", "840"), ("10", "400"), ("10", "400"), ("1", "40"), ("30", "1,200")]
    assert [tuple(rows[name][:2]) for name in names] == sizes
    per_token = {name: float(rows[name][4].split()[0]) for name in rows if name.startswith(("site", "unseen"))}
    assert per_token["site b"] == pytest.approx(1, abs=0.02) and per_token["site a"] < 0.01
    assert per_token["unseen text"] == pytest.approx(0.25, abs=0.02)
    above, error = (float(number.strip("()")) for number in rows["site b"][5].split())
    assert above == pytest.approx(0.75, abs=0.03) and 0 < error < 0.02
    assert float(rows["site b"][7]) == pytest.approx(-1, abs=0.02)

    documents = list(csv.DictReader((output / "documents.csv").open(encoding="utf-8")))
    assert [(row["row"], row["id"], row["value"]) for row in documents[:2]] == [
        ("0", "doc|0", "a"),
        ("1", "doc|1", "b"),
    ]
    assert [row["copies"] for row in documents] == ["2", *["1"] * 19, "2"]
    total = sum(float(row["memorised"]) for row in documents)
    assert float(rows["all documents"][2]) == pytest.approx(total, abs=0.06)
    for row in documents:
        assert float(row["memorised_per_token"]) == pytest.approx(float(row["memorised"]) / TOKENS)
        wanted = float(row["memorised"]) - per_token["unseen text"] * TOKENS
        assert float(row["above_unseen"]) == pytest.approx(wanted, abs=0.01)
    shown = [name for name in rows if name.isdigit()]
    first = sorted(documents, key=lambda row: -float(row["above_unseen"]))[:4]
    assert shown == [row["row"] for row in first]
    tokens = drawn(20, 1).tokens_MT[int(shown[0])].tolist()
    assert rows[shown[0]][0] == rf"doc\|{shown[0]}" and rows[shown[0]][-1].startswith(" ".join(map(str, tokens[:9])))


def test_a_limit_bounds_the_documents_and_a_window_what_is_read(
    run_command: RunCommand, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a window of one token, the model reads only the start token. Its losses therefore exceed the labels."""
    labels = write_planted(tmp_path / "labels")
    flags = ("--model", model, "--labels", labels, "--limit", 2)
    assert run_command(JOB, *flags) == 0
    whole = table_rows(capsys.readouterr().out)["all documents"]
    assert run_command(JOB, *flags, "--window", 1) == 0
    single = table_rows(capsys.readouterr().out)["all documents"]
    assert whole[:2] == single[:2] == ["2", "80"]
    assert float(single[-2]) > 0.5 > 0.2 > float(whole[-2])


def test_documents_whose_labels_cannot_move_are_counted(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model has another tokenizer than the dataset, so labels are transferred to the tokens of the model.

    One document has a token for each letter of a word, although the dataset's tokenizer encodes the word differently.
    The labels of this document cannot be transferred.
    """
    tokenizer, other = load_tokenizer(SHIPPED / "tokenizer"), load_tokenizer(SHIPPED / "tokenizer")
    texts = sample_texts(3, 200)
    tokens = [ids.tolist() for ids in encode(tokenizer, texts)]
    tokens.append(np.concatenate(encode(tokenizer, ["t", "h", "e"])).tolist())
    sha256 = tokenizer_sha256(SHIPPED / "tokenizer")
    nats = [[2.0] * len(ids) for ids in tokens]
    labels = write_annotated(tmp_path / "labels", tokens, nats, vocabulary=8192, tokenizer_sha256=sha256)
    copy_tokenizer(SHIPPED / "tokenizer", labels / "tokenizer" / "exact")
    folder = tmp_path / "model"
    language_model = tiny_language_model(vocabulary=8193)
    save_checkpoint(language_model, folder, dtype="float32", tokenizer_folder=SHIPPED / "tokenizer", card="")
    other.add_tokens(["an added token"])
    other.save(str(folder / "tokenizer.json"))
    assert run_command(JOB, "--model", folder, "--labels", labels) == 0
    printed = capsys.readouterr().out
    assert "Audited: 3 documents, 3 of them distinct, 1 left out because their labels cannot move." in printed
    assert table_rows(printed)["all documents"][1] == f"{sum(map(len, tokens[:3])):,}"
    assert " ".join(texts[0].split())[:40].split("|")[0][:15] in printed.replace("\\", "")
