"""Annotation as a user runs it: mostly in this process, and on a real local Ray where Ray matters."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from datasets import load_dataset

from pipeline.annotate.config import Config
from pipeline.annotate.prepare import dtype_for
from pipeline.data.annotated import find_annotations
from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.engine import scheduler
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.throughput import WORK
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from schemas.annotations import PROVENANCE_KEY, Provenance
from tests.builders import PROVENANCE, sample_texts, write_documents
from tests.checkers import ROOT
from tests.conftest import RunCommand, SmallDisk
from tests.engine.fakes import shards
from tests.forkserver import Forked
from tests.hub import hub_server
from tests.tiny_models import tiny_estimator, tiny_language_model, tiny_second_order

HERE = ("pipeline.annotate", "--workers", 0)


def shard_rows(output: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted((output / "data").rglob("*.parquet"))])


@pytest.mark.usefixtures("ray_cluster")
def test_no_arguments_label_the_sample(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command("pipeline.annotate") == 0
    printed = capsys.readouterr().out
    assert run_command("pipeline.annotate") == 0 and "the dataset was complete" in capsys.readouterr().out
    for line in ("documents", "tokens", "tokens/s", "mean entropy", "bits per byte", "dataset", "load_dataset"):
        assert line in printed
    assert "annotated-sample-report/report.html shows" in printed
    assert (
        "second-order labels"
        in (tmp_path / "annotated-sample-report" / "report.html").read_text(encoding="utf-8").lower()
    )
    rows = shard_rows(tmp_path / "annotated-sample").to_pylist()
    assert {"id", "dump", "url", "token_count"} <= set(rows[0]) and "text" not in rows[0]
    for row in rows:
        assert len(row["entropy"]) == len(row["expected_entropy"]) == len(row["input_ids"]) == row["num_tokens"]
        assert np.isfinite(row["entropy"]).all() and np.isfinite(row["expected_entropy"]).all()


def test_rows_keep_their_order_and_their_text_is_what_was_tokenized(run_command: RunCommand, tmp_path: Path) -> None:
    texts: Sequence[str | None] = [*sample_texts(9), None, "", "<|endoftext|> is text here 🙂"]
    file = write_documents(tmp_path / "in.parquet", texts, id=list(range(12)))
    output = tmp_path / "out"
    assert (
        run_command(
            "pipeline.annotate",
            "--input",
            file,
            "--output",
            output,
            "--rows-per-unit",
            5,
            "--keep-text",
            "--workers",
            0,
        )
        == 0
    )
    rows = shard_rows(output).to_pylist()
    assert [row["id"] for row in rows] == list(range(12))
    assert [row["text"] for row in rows] == texts
    tokenizer = load_tokenizer(output / "tokenizer" / "second-order")
    for row, ids in zip(rows, encode(tokenizer, [text or "" for text in texts]), strict=True):
        assert row["input_ids"] == ids.tolist()
    assert [row["mean_entropy"] is None for row in rows] == [False] * 9 + [True, True, False]


def test_a_split_is_labelled_and_resumed(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = sample_texts(6, 100)
    for index, split in enumerate(("train", "validation", "test")):
        write_documents(tmp_path / "in" / "data" / f"{split}-00000-of-00001.parquet", texts[2 * index : 2 * index + 2])
    command = (*HERE, "--input", tmp_path / "in", "--keep-text", "--output", tmp_path / "out")
    taking = "taking split train of train, validation, test; --split names another, --split all takes all"
    for further in ((), (), ("--split", "train")):
        capsys.readouterr()
        assert run_command(*command, *further) == 0
        assert [line for line in capsys.readouterr().err.splitlines() if "taking" in line] == [
            f"{tmp_path}/in: {taking}"
        ]
    assert shard_rows(tmp_path / "out").column("text").to_pylist() == texts[:2]
    assert run_command(*command, "--split", "all") == 1
    assert "choices ('split train',) there, ('split all',) now" in capsys.readouterr().err
    assert run_command(*command, "--split", "all", "--subset", "all") == 0
    rows = load_dataset(str(tmp_path / "out"), "all", split="train", streaming=True)
    assert [row["text"] for row in rows] == texts


def test_an_annotated_dataset_is_an_input_with_its_subsets(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(2, 100))
    first = (*HERE, "--input", file, "--keep-text", "--output", tmp_path / "one")
    assert run_command(*first) == 0
    assert run_command(*first, "--subset", "short", "--limit", 1) == 0
    again = ("jobs.train_tokenizer", "--input", tmp_path / "one", "--vocabulary", 300)
    capsys.readouterr()
    assert run_command(*again, "--output", tmp_path / "tokenizer") == 0
    taking = "taking config second-order of second-order, short; --config-name names another"
    assert capsys.readouterr().err.splitlines() == [f"{tmp_path}/one: {taking}"]
    assert run_command(*again, "--config-name", "short", "--output", tmp_path / "tokenizer-short") == 0
    for folder, documents in (("tokenizer", 2), ("tokenizer-short", 1)):
        assert f"{documents} documents" in (tmp_path / folder / "README.md").read_text(encoding="utf-8")
    assert len(find_annotations(f"{tmp_path}/one/data/short")) == 1


def test_a_provenance_from_before_there_were_choices_is_read() -> None:
    values = json.loads(PROVENANCE.to_json())
    del values["choices"]
    assert Provenance.from_json(json.dumps(values)) == PROVENANCE
    chosen = replace(PROVENANCE, choices=("split train",))
    assert Provenance.from_json(chosen.to_json()) == chosen


def test_load_dataset_reads_what_was_written_and_streams_it(run_command: RunCommand, tmp_path: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(20))
    output = tmp_path / "out"
    assert run_command("pipeline.annotate", "--input", file, "--output", output, "--workers", 0) == 0
    loaded = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    streamed = list(load_dataset(str(output), split="train", streaming=True))
    assert [dict(row) for row in loaded] == streamed == shard_rows(output).to_pylist()
    assert len(list((output / "data" / "second-order").iterdir())) == 3
    card = (output / "README.md").read_text(encoding="utf-8")
    metadata = pq.read_schema(next((output / "data" / "second-order").iterdir())).metadata
    provenance = Provenance.from_json(metadata[PROVENANCE_KEY].decode())
    assert provenance.checkpoint_sha256 in card and provenance.method == "second-order"


def test_folders_of_one_name_are_not_mistaken_for_each_other(run_command: RunCommand, tmp_path: Path) -> None:
    """`datasets` names its cache after the last part of a path.

    Folders with the same name therefore share a cache if their cards agree.
    """
    for number, parent in enumerate(("first", "second")):
        file = write_documents(tmp_path / parent / "in.parquet", sample_texts(2), id=[number, number])
        output = tmp_path / parent / "annotated"
        assert run_command("pipeline.annotate", "--input", file, "--output", output, "--workers", 0) == 0
        loaded = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
        streamed = load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"), streaming=True)
        assert [row["id"] for row in loaded] == [row["id"] for row in streamed] == [number, number]


def test_an_interrupted_run_resumes_and_ends_the_same(run_command: RunCommand, tmp_path: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(12))
    arguments = (
        "pipeline.annotate",
        "--input",
        file,
        "--rows-per-unit",
        4,
        "--workers",
        0,
        "--output",
        tmp_path / "out",
    )
    assert run_command(*arguments) == 0
    shards = {shard.name: shard.read_bytes() for shard in (tmp_path / "out" / "data" / "second-order").iterdir()}
    kept, *lost = sorted((tmp_path / "out" / "_ledger" / "second-order" / "receipts").iterdir())
    for receipt in lost:
        (tmp_path / "out" / "data" / "second-order" / json.loads(receipt.read_text(encoding="utf-8"))["shard"]).unlink()
    (tmp_path / "out" / "data" / "second-order" / ".train-00001-of-00003.parquet.unfinished").write_text(
        "cut off", encoding="utf-8"
    )
    untouched = (
        (tmp_path / "out" / "data" / "second-order" / json.loads(kept.read_text(encoding="utf-8"))["shard"])
        .stat()
        .st_mtime_ns
    )
    assert run_command(*arguments) == 0
    assert {
        shard.name: shard.read_bytes() for shard in (tmp_path / "out" / "data" / "second-order").iterdir()
    } == shards
    assert (
        tmp_path / "out" / "data" / "second-order" / json.loads(kept.read_text(encoding="utf-8"))["shard"]
    ).stat().st_mtime_ns == untouched


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "method",
    ["exact", pytest.param("second-order", marks=pytest.mark.long), pytest.param("causal", marks=pytest.mark.slow)],
)
def test_shards_are_the_same_bits_in_this_process_and_in_workers(
    run_command: RunCommand, tmp_path: Path, method: str
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(12, 800))
    models: dict[str, Callable[..., Any]] = {
        "second-order": tiny_second_order,
        "exact": tiny_estimator,
        "causal": tiny_language_model,
    }
    models[method](vocabulary=8192).save_pretrained(tmp_path / "model")
    copy_tokenizer(SHIPPED / "tokenizer", tmp_path / "model")
    chosen = ("--input", file, "--method", method, "--estimator", tmp_path / "model", "--rows-per-unit", 3)
    written = []
    for workers in (0, 1):
        output = tmp_path / str(workers)
        assert run_command("pipeline.annotate", *chosen, "--workers", workers, "--output", output) == 0
        written.append(shards(output))
    assert len(written[0]) == 4
    assert written[0] == written[1]


@pytest.mark.parametrize("fast", ["bfloat16", "float32"])
def test_the_precision_suits_the_device_and_stays_until_the_run_is_complete(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: str
) -> None:
    file, other = write_documents(tmp_path / "in.parquet", sample_texts(2, 300)), {"bfloat16", "float32"} - {fast}
    command = ("pipeline.annotate", "--input", file, "--output", tmp_path / "out", "--workers", 0)
    monkeypatch.setattr("pipeline.annotate.prepare.fast_dtype", lambda device: fast)
    assert run_command(*command) == 0
    (shard,) = (tmp_path / "out" / "data").rglob("*.parquet")
    assert Provenance.from_json(pq.read_schema(shard).metadata[PROVENANCE_KEY].decode()).dtype == fast
    monkeypatch.setattr("pipeline.annotate.prepare.fast_dtype", lambda device: other.copy().pop())
    assert run_command(*command) == 0, "on another machine the run is the same"
    assert run_command(*command, "--dtype", *other) == 1


def test_the_workers_gpu_decides_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.annotate.prepare.fast_dtype", {"cpu": "float32", "cuda": "bfloat16"}.__getitem__)
    assert dtype_for(Config(gpus_per_worker=0.5), None) == "bfloat16"
    assert dtype_for(Config(gpus_per_worker=0), None) == dtype_for(Config(), None) == "float32"
    assert dtype_for(Config(dtype="float32", gpus_per_worker=1), None) == "float32"
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8, "GPU": 2}}])
    assert dtype_for(Config(), None) == "bfloat16"


def test_ray_may_be_missing_if_this_process_labels(tmp_path: Path) -> None:
    """A command that labels in its own process needs only torch and transformers, and starts at once."""
    tiny_estimator().save_pretrained(tmp_path / "estimator")
    file = write_documents(tmp_path / "in.parquet", ["text"], input_ids=[[1, 2, 3]])
    chosen = ("--input", file, "--method", "exact", "--estimator", tmp_path / "estimator", "--tokenizer", "none")
    words = ["pipeline.annotate", *map(str, chosen), "--workers", "0", "--output", str(tmp_path / "out")]
    program = (
        "import runpy, sys; sys.modules['ray'] = None; sys.argv = {0}; runpy.run_module({0}[0], run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", program.format(words)], check=True, capture_output=True)
    assert len(shard_rows(tmp_path / "out")) == 1


def test_documents_that_are_already_tokenized_are_labelled_by_a_model_of_their_vocabulary(
    run_command: RunCommand, tmp_path: Path
) -> None:
    ids = [[5, 96, 0, 7] * 20, [], [1]]
    assert run_command(*tokenized(tmp_path, ids), "--vocabulary", 97, "--output", tmp_path / "out") == 0
    rows = shard_rows(tmp_path / "out").to_pylist()
    assert [row["input_ids"] for row in rows] == ids
    assert [len(row["entropy"]) for row in rows] == [80, 0, 1]


def test_json_lines_of_any_name_of_column_are_labelled(run_command: RunCommand, tmp_path: Path) -> None:
    texts = [*sample_texts(3, 300), ["no text"], None]
    lines = [json.dumps({"body": text, "id": row, "more": [row]}) for row, text in enumerate(texts)]
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    chosen = ("--text-column", "body", "--columns", "id", "--keep-text", "--workers", 0)
    assert run_command("pipeline.annotate", "--input", tmp_path, *chosen, "--output", tmp_path / "out") == 0
    rows = shard_rows(tmp_path / "out").to_pylist()
    assert [row["body"] for row in rows] == [*texts[:3], None, None] and "more" not in rows[0]
    assert [row["id"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["num_tokens"] > 0 for row in rows] == [True] * 3 + [False] * 2


def test_each_file_of_text_is_a_document(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [*sample_texts(3, 300), ""]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt.gz").write_bytes(gzip.compress(text.encode()))
    chosen = ("pipeline.annotate", "--input", f"{tmp_path}/*.txt.gz", "--output", tmp_path / "out")
    assert run_command(*chosen, "--dry-run", "--tokens-per-second", 9) == 0
    printed = capsys.readouterr().out
    assert "units          4 of at most 1 rows\n" in printed and "4 documents" in printed
    assert run_command(*chosen, "--keep-text", "--workers", 0) == 0
    rows = shard_rows(tmp_path / "out").to_pylist()
    assert [row["text"] for row in rows] == texts
    assert [row["num_tokens"] > 0 for row in rows] == [True] * 3 + [False]
    assert [(row["id"], row["file"]) for row in rows] == [(f"{number}.txt.gz",) * 2 for number in range(4)]


def test_a_run_over_text_files_that_began_without_their_names_resumes_without(
    run_command: RunCommand, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"text {name}", encoding="utf-8")
    out = tmp_path / "out"
    chosen = ("pipeline.annotate", "--input", f"{tmp_path}/*.txt", "--output", out, "--workers", 0)
    assert run_command(*chosen, "--columns", "file") == 0
    assert shard_rows(out).column("file").to_pylist() == ["a.txt", "b.txt"] and "id" not in shard_rows(out).column_names
    shutil.rmtree(out)
    assert run_command(*chosen, "--limit", 1) == 0
    plan = next(out.rglob("plan.json"))
    begun = json.loads(plan.read_text(encoding="utf-8"))
    del begun["run"]["names_of_text"]  # older plans lack it
    plan.write_text(json.dumps(begun), encoding="utf-8")
    for file in [*out.rglob("*.parquet"), *out.rglob("receipts/*")]:
        file.unlink()
    assert run_command(*chosen, "--limit", 1) == 0
    assert not {"id", "file"} & set(shard_rows(out).column_names)


def test_documents_that_lack_text_or_characters_are_counted_in_the_summary(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": "b\ud800"}, {"text": ""}]
    (tmp_path / "in.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    arguments = ("pipeline.annotate", "--input", tmp_path / "in.json", "--output", tmp_path / "out")
    assert run_command(*arguments, "--dry-run", "--tokens-per-second", 9) == 0
    assert "estimated from 4 documents from all over the source, 2 of them without text\n" in capsys.readouterr().out
    assert run_command(*arguments, "--workers", 0) == 0
    assert "documents      4, 2 without text, 1 with U+FFFD in it\n" in capsys.readouterr().out


def test_a_dry_run_gives_advice_if_each_of_many_files_becomes_a_shard(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.annotate.dry_run.MANY_FILES", 3)
    for name in "abc":
        (tmp_path / f"{name}.md").write_text("text", encoding="utf-8")
    arguments = ("pipeline.annotate", "--input", f"{tmp_path}/*.md", "--output", tmp_path / "out", "--dry-run")
    assert run_command(*arguments, "--tokens-per-second", 9) == 0
    assert "3 of at most 1 rows; one shard per file: join small files" in capsys.readouterr().out
    (file,) = [write_documents(tmp_path / "in.parquet", ["text"] * 90)]
    assert run_command(*arguments[:2], file, *arguments[3:], "--tokens-per-second", 9) == 0
    assert "join" not in capsys.readouterr().out


def tokenized(folder: Path, documents: Sequence[Sequence[int]]) -> tuple[object, ...]:
    """Return arguments that label documents of token ids with a tiny estimator."""
    tiny_estimator().save_pretrained(folder / "estimator")
    file = write_documents(folder / "in.parquet", ["text"] * len(documents), input_ids=documents)
    checkpoint = ("--method", "exact", "--estimator", folder / "estimator", "--tokenizer", "none")
    return ("pipeline.annotate", "--input", file, *checkpoint, "--workers", 0, "--rows-per-unit", 4)


def test_quarantined_units_are_listed_and_the_exit_code_is_three(
    run_command: RunCommand,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "PAUSE", 0.1)
    documents = [[1, 2, 3]] * 16
    documents[5] = [1, 97]
    arguments = (*tokenized(tmp_path, documents), "--output", tmp_path / "out")
    for speed in ("stages", "none: no unit succeeded"):
        assert run_command(*arguments) == 3
        printed = capsys.readouterr().out
        assert speed in printed
        assert "1 units are quarantined" in printed and "the same command retries them" in printed
        assert f"unit 1, rows 4 to 8 of {tmp_path / 'in.parquet'}: token ids from 1 to 97 do not fit" in printed
    assert len(shard_rows(tmp_path / "out")) == 12
    assert len(find_annotations(str(tmp_path / "out")).corpus()) == 12


def test_a_complete_run_is_left_as_it_is(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*tokenized(tmp_path, [[1, 2, 3]] * 8), "--output", tmp_path / "out")
    assert run_command(*arguments) == 0
    assert "is the slowest" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "_ledger" / "exact" / "report.json").read_text(encoding="utf-8"))
    assert report["units"] == 2 and report["tokens"] == 24 and set(report["stages"]) == set(WORK) - {"upload"}
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "data" / "exact").iterdir()}
    monkeypatch.setattr(Scheduler, "outcomes", None)  # must not be called
    assert run_command(*arguments) == 0
    assert "none: the dataset was complete" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "data" / "exact").iterdir()} == before


def test_a_dry_run_prints_sizes_and_time_and_writes_nothing(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [[1, 2, 3, 4]] * 50 + [[1] * 8] * 50
    arguments = (*tokenized(tmp_path, documents), "--output", tmp_path / "out", "--dry-run")
    assert run_command(*arguments, "--tokens-per-second", 100) == 0
    given = capsys.readouterr().out
    assert run_command(*arguments) == 0
    measured = capsys.readouterr().out
    assert "25 of at most 4 rows" in given and "100 documents, 0.000 GB in 1 files" in given
    assert "600 ± " in given and "from 52 documents" in given.replace("from 56", "from 52")
    assert "100 per worker, given" in given and "measured on one" in measured
    assert "a labelled token's 1 column" in given and "passed on      no column" in given
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", sorted((ROOT / "jobs").glob("annotate_*.yaml")))
def test_recipes_are_understood(
    run_command: RunCommand, tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = yaml.safe_load(recipe.read_text(encoding="utf-8"))["columns"]
    file = write_documents(tmp_path / "in.parquet", ["text"], **{name: ["x"] for name in names})
    here = ("--input", file, "--output", tmp_path / "out", "--estimator", tmp_path / "model")
    causal = yaml.safe_load(recipe.read_text(encoding="utf-8")).get("method") == "causal"
    (tiny_language_model if causal else tiny_second_order)(vocabulary=8192).save_pretrained(tmp_path / "model")
    copy_tokenizer(SHIPPED / "tokenizer", tmp_path / "model")
    start = ("--start-token", "<|endoftext|>") if causal else ()
    dry = ("--dry-run", "--tokens-per-second", 1e6)
    assert run_command("pipeline.annotate", "--config", recipe, *here, *start, *dry) == 0
    assert "1,000,000 per worker, given" in capsys.readouterr().out


def test_a_run_over_a_hub_dataset_resumes_with_the_commit_that_it_began_with(tmp_path: Path) -> None:
    """Each run is a process of its own, so a later run remembers nothing of the first."""
    tiny_second_order(vocabulary=8192).save_pretrained(tmp_path / "model")
    copy_tokenizer(SHIPPED / "tokenizer", tmp_path / "model")
    file = write_documents(tmp_path / "in.parquet", sample_texts(8, 200))
    inputs = ("--input", "hf://datasets/user/name@main/data", "--estimator", tmp_path / "model", "--rows-per-unit", 4)
    chosen = (*inputs, "--output", tmp_path / "out", "--workers", 0)
    with hub_server() as hub:
        begun_at = hub.add("user/name", {"data/train-0.parquet": file.read_bytes()})
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        printed = []
        for _ in range(2):
            run = Forked("pipeline.annotate", *chosen, environment=environment)
            printed.append(run.communicate(timeout=300))
            assert run.returncode == 0, printed[-1]
            hub.add("user/name", {"data/train-1.parquet": file.read_bytes()})
    assert "documents      8" in printed[0][0] and "the dataset was complete" in printed[1][0]
    plan = json.loads((tmp_path / "out" / "_ledger" / "second-order" / "plan.json").read_text(encoding="utf-8"))
    assert plan["run"]["source"] == [f"hf://datasets/user/name@{begun_at}/data"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert hub.writer.encode() not in written and not any(hub.writer in out + err for out, err in printed)


def test_a_full_disk_ends_the_run_and_more_room_completes_it(
    run_command: RunCommand, tmp_path: Path, small_disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(97, size=9000).tolist() for _ in range(80)]
    arguments = (*tokenized(tmp_path, documents), "--share", 0.01)
    assert run_command(*arguments, "--output", small_disk.folder / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: cannot write to") and "No space left on device" in error
    committed = list((small_disk.folder / "out" / "data" / "exact").iterdir())
    assert committed and all(file.suffix == ".parquet" for file in committed)
    small_disk.grow()
    assert run_command(*arguments, "--output", small_disk.folder / "out") == 0
    assert run_command(*arguments, "--output", tmp_path / "plain") == 0
    assert shards(small_disk.folder / "out") == shards(tmp_path / "plain")


@pytest.mark.fineweb
def test_two_hundred_fineweb_rows_have_finite_labels_in_source_order(run_command: RunCommand, tmp_path: Path) -> None:
    tiny_second_order(vocabulary=8192).save_pretrained(tmp_path / "model")
    copy_tokenizer(SHIPPED / "tokenizer", tmp_path / "model")
    chosen = ("--input", os.environ["FINEWEB"], "--estimator", tmp_path / "model")
    assert run_command(*HERE, *chosen, "--output", tmp_path / "out") == 0
    rows = shard_rows(tmp_path / "out").to_pylist()
    assert [row["id"] for row in rows] == pq.read_table(os.environ["FINEWEB"]).column("id").to_pylist()
    assert len(rows) == 200
    for row in rows:
        assert len(row["entropy"]) == len(row["input_ids"])
        assert np.isfinite(row["entropy"]).all()


@pytest.mark.usefixtures("ray_cluster")
def test_a_gpu_that_the_machine_lacks_is_not_waited_for(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(2))
    arguments = ("--input", file, "--output", tmp_path / "out", "--gpus-per-worker", 64)
    assert run_command("pipeline.annotate", *arguments) == 1
    assert "too little for a worker, which needs 1 CPU and 64 GPU: request less" in capsys.readouterr().err


def test_a_larger_limit_extends_the_dataset_and_a_smaller_one_is_refused(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = tokenized(tmp_path, [[1, 2, 3, place] for place in range(20)])[:-2]
    limits: list[tuple[object, ...]] = [("--limit", 10), ("--limit", 13), ()]
    for limit in limits:
        assert run_command(*command, "--output", tmp_path / "out", *limit) == 0
    printed = capsys.readouterr().out
    assert (
        "grows          from 10 to 13 documents, 8 in a shard as before" in printed and "from 13 to 20 doc" in printed
    )
    assert "to label       12 documents in 2 units" in printed, "the first shard stays"
    assert run_command(*command, "--output", tmp_path / "plain", "--rows-per-unit", 8) == 0
    assert shards(tmp_path / "out") == shards(tmp_path / "plain")
    assert run_command(*command, "--output", tmp_path / "out", "--limit", 5) == 1
    assert "holds 20 documents, more than the 5 of --limit; give the larger limit again" in capsys.readouterr().err


def test_the_output_of_another_run_is_refused_and_kept(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(3))
    output = tmp_path / "out"
    assert run_command("pipeline.annotate", "--input", file, "--output", output, "--workers", 0) == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    capsys.readouterr()
    assert run_command("pipeline.annotate", "--input", file, "--output", output, "--share", 0.5) == 1
    error = capsys.readouterr().err
    assert "holds another run's dataset (share 1.0 there, 0.5 now" in error
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
