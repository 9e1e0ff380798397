"""The summary at the end of a run: the call that loads the dataset, an example with labels, speeds."""

import re
from pathlib import Path

import pytest

from pipeline.annotate.summary import print_examples
from pipeline.data.ledger import Ledger
from schemas.layout import Subset
from schemas.receipts import Counts, Receipt
from tests.annotated import write_annotated
from tests.builders import write_documents
from tests.conftest import RunCommand
from tests.tiny_models import tiny_estimator

NAN = float("nan")


def printed(folder: Path, labels: list[list[float]], capsys: pytest.CaptureFixture[str]) -> list[str]:
    write_annotated(folder, [list(range(100, 100 + len(row))) for row in labels], labels)
    subset = Subset("exact", folder)
    for shard in subset.shards():
        size = (subset.data / shard).stat().st_size
        Ledger(subset).record(Receipt(unit=0, shard=shard, sha256="d" * 64, size=size, counts=Counts()))
    print_examples(subset, None, complete=True)
    return capsys.readouterr().out.strip().splitlines()


def test_the_example_begins_where_labels_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = [[NAN] * 40, [1.0] * 15, [*[NAN] * 30, 2.5, 3.5, *[NAN] * 30]]
    first, _, *tokens = printed(tmp_path, labels, capsys)
    assert first == f'load_dataset("{tmp_path}", "exact", split="train") has every document; one has, from token 30 on'
    assert len(tokens) == 16 and [line.split() for line in tokens[:3]] == [["130", "2.50"], ["131", "3.50"], ["132"]]


@pytest.mark.parametrize(("place", "start"), [(0, 0), (39, 24), (25, 24), (24, 24)])
def test_a_label_at_the_end_is_shown_with_those_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: int, start: int
) -> None:
    first, _, *tokens = printed(tmp_path, [[2.5 if token == place else NAN for token in range(40)]], capsys)
    assert (f"from token {start} on" in first) == (start > 0) and ("one begins" in first) == (start == 0)
    assert tokens[0].split()[0] == str(100 + start) and len(tokens) == 16
    assert tokens[place - start].split() == [str(100 + place), "2.50"]


@pytest.mark.parametrize("labels", [[[1.0] * 15], [[NAN] * 40], [[]]])
def test_without_an_example_only_the_call_that_loads_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[list[float]]
) -> None:
    call = f'load_dataset("{tmp_path}", "exact", split="train")'
    assert printed(tmp_path, labels, capsys) == [f"{call} has every document"]


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_speed_of_a_share_distinguishes_read_and_labelled_tokens(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    tiny_estimator().save_pretrained(tmp_path / "estimator")
    file = write_documents(tmp_path / "in.parquet", ["text"] * 4, input_ids=[list(range(90))] * 4)
    chosen = ("--method", "exact", "--estimator", tmp_path / "estimator", "--tokenizer", "none", "--share", share)
    words = ("--input", file, *chosen, "--workers", 0, "--output", tmp_path / "out")
    assert run_command("pipeline.annotate", *words) == 0
    out = capsys.readouterr().out
    found = re.search(r"^tokens/s +([\d,]+)(?: read, ([\d,]+) labelled)?$", out, re.MULTILINE)
    assert found is not None and (found[2] is None) == (share == 1.0)
    assert [line for line in out.splitlines()[-16:] if re.fullmatch(r"\d+ +-?\d+\.\d\d", line)], "no label is shown"
