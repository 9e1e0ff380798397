"""Files, checkpoints and datasets with one defect each, and sound ones, in a folder where commands run."""

import gzip
import json
import lzma
import os
import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from pipeline.data.tokenizer import tokenizer_sha256, train_byte_pairs
from pipeline.models.checkpoint import SHIPPED, Checkpoint, copy_tokenizer
from schemas.calibrations import LabelSettings
from schemas.layout import LEDGER_FOLDER, Subset
from schemas.receipts import PLAN_FILE, RECEIPTS, REPORT_FILE
from tests.annotated import write_annotated
from tests.builders import sample_texts, write_documents
from tests.conftest import run_module
from tests.hostile.checkpoints import ALL
from tests.labels.calibrations import LINEAR, calibration
from tests.models.architectures import tiny_causal
from tests.publish.datasets import annotated
from tests.sidecars import SETTINGS, KeyedDocument, labelled, write_sidecar, write_source
from tests.tiny_models import tiny_autoencoder, tiny_estimator, tiny_language_model, tiny_second_order

TOKENS = [[(start * step) % 97 for step in range(40)] for start in range(1, 25)]
LABELLED = LabelSettings(
    method="second-order",
    checkpoint_sha256=Checkpoint(SHIPPED / "second-order").sha256,
    tokenizer_sha256=tokenizer_sha256(SHIPPED / "tokenizer"),
    window=256,
    overlap=128,
    start_token=None,
)
SECRET = "hf_secretsecretsecret"
# Names of checkpoints that an attacker has prepared, one for each message that such checkpoints can cause.
HOSTILE = (
    *("configuration a link", "nested deep", "long", "type list", "vocab_size 0", "many layers", "layers", "kernel"),
    *("index of pickle", "index of nothing", "index without map", "two of a name", "parts of ranks", "adapter"),
    *("other weights", "fold of letters", "not a number", "deviation", "ids beyond", "start just beyond"),
    *("text sparse", "text grows", "words long", "declared list", "declared number"),
)
CODE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}


def write_materials(folder: Path) -> None:
    """Write all materials into a folder, each named by its defect."""
    folder.chmod(0o755)
    _write_documents(folder)
    _write_checkpoints(folder)
    _write_hostile(folder)
    _write_datasets(folder)
    _write_trainings(folder)
    _write_finished_training(folder)
    _write_sidecars(folder / "beside")
    _write_settings(folder)


def _write_documents(folder: Path) -> None:
    _write_tables(folder)
    _write_columns(folder)
    _write_texts(folder)
    _write_folders(folder)


def _write_tables(folder: Path) -> None:
    good = write_documents(folder / "good.parquet", sample_texts(12, 200), id=list(range(12)))
    write_documents(folder / "one.parquet", ["a document"])
    write_documents(folder / "without-rows.parquet", [])
    write_documents(folder / "without-text.parquet", [None, ""] * 12)
    write_documents(folder / "clash.parquet", ["a"], entropy=[1.0])
    write_documents(folder / "tokens.parquet", ["a"] * len(TOKENS), input_ids=TOKENS)
    write_documents(folder / "nulls.parquet", ["a"] * 3, input_ids=[[1, None], [2], [3]])
    pq.write_table(pa.table({"body": ["a"]}), folder / "body.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), folder / "numbers.parquet")
    tags = pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"text": ["a"], "tags": tags}), folder / "mapped.parquet")
    pq.write_table(pa.table({"text": pa.array(["a"]).dictionary_encode()}), folder / "dictionary.parquet")
    (folder / "truncated.parquet").write_bytes(good.read_bytes()[:-20])
    damaged = bytearray(good.read_bytes())
    damaged[4:60] = bytes(56)
    (folder / "damaged.parquet").write_bytes(damaged)
    (folder / "empty.parquet").write_bytes(b"")


def _write_columns(folder: Path) -> None:
    """Write files with contradictory columns. The contradictions are within one file or between two files."""
    write_documents(folder / "words.parquet", ["a"], id=["one"])
    for name, names in (("classes", ["ham", "spam"]), ("other-classes", ["spam", "ham"])):
        feature = {"kind": {"names": names, "_type": "ClassLabel"}}
        table = pa.table({"text": ["a"], "id": [1], "kind": [0]})
        metadata = {"huggingface": json.dumps({"info": {"features": feature}})}
        pq.write_table(table.replace_schema_metadata(metadata), folder / f"{name}.parquet")
    pq.write_table(table.replace_schema_metadata({"huggingface": "{"}), folder / "features.parquet")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["text", "id", "id"])
    pq.write_table(twice, folder / "twice.parquet")


def _write_texts(folder: Path) -> None:
    (folder / "table.csv").write_text("text\na\n", encoding="utf-8")
    (folder / "table.xlsx").write_bytes(b"PK\x03\x04" + bytes(60))
    (folder / "empty-folder").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("a note", encoding="utf-8")
    (folder / "pages").mkdir()
    (folder / "pages" / "report.html").write_text("<!doctype html>a page", encoding="utf-8")
    (folder / "latin.txt").write_bytes("un café".encode("latin-1"))
    (folder / "wide.txt").write_bytes("un café".encode("utf-16"))
    (folder / "latin.jsonl").write_bytes('{"text": "a"}\n{"text": "un café"}\n'.encode("latin-1"))
    (folder / "wide.jsonl").write_bytes('{"text": "un café"}\n'.encode("utf-16"))
    for name, content in (
        ("commas.jsonl", '{"text": "a"},\n{"text": "b"},\n'),
        ("joined.jsonl", '{"text": "a"}\n{"text": "b"}{"text": "c"}\n'),
        ("pretty.json", '{\n  "text": "a"\n}\n'),
        ("cut.jsonl", '{"text": "a"}\n{"text": "b'),
        ("list.jsonl", '{"text": "a"}\n["b"]\n'),
        ("trailing.json", '[{"text": "a"},\n]\n'),
        ("cut.json", '[{"text": "a"}\n'),
        ("numbers.jsonl", '{"text": 1}\n'),
    ):
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "body.jsonl").write_text('{"body": "a"}\n', encoding="utf-8")
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 99)[:-9])
    (folder / "file").write_text("not a folder", encoding="utf-8")
    _write_large(folder)


def _write_large(folder: Path) -> None:
    """Write small files that would take much memory to read."""
    keys = ",".join(f'"k{number}":1' for number in range(10_001))
    (folder / "columns.jsonl").write_text(f'{{"text":"a",{keys}}}\n', encoding="utf-8")
    long = b'{"text": "' + b"a" * 70_000_000 + b'"}'
    (folder / "long.jsonl.gz").write_bytes(gzip.compress(long, 1))
    (folder / "long.json.gz").write_bytes(gzip.compress(b"[" + long + b"]", 1))
    parameters = zstandard.ZstdCompressionParameters(window_log=31, compression_level=1, enable_ldm=True)
    window = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (folder / "window.jsonl.zst").write_bytes(window.compress(b'{"text": "a"}\n') + window.flush())
    large = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}]
    (folder / "window.jsonl.xz").write_bytes(lzma.compress(b'{"text": "a"}\n', filters=large))
    (folder / "device.jsonl").symlink_to("/dev/zero")


def _write_folders(folder: Path) -> None:
    configs = "\n".join(f"- config_name: {name}\n  data_files: {name}/*" for name in ("one", "two"))
    for name, content in (
        ("splits/test.jsonl", '{"text": "a"}\n'),
        ("splits/validation.jsonl", '{"text": "a"}\n'),
        ("configs/one/a.jsonl", '{"text": "a"}\n'),
        ("configs/README.md", f"---\nconfigs:\n{configs}\n---\n"),
        ("card-broken/a.jsonl", '{"text": "a"}\n'),
        ("card-broken/README.md", "---\nconfigs: [\n---\n"),
        ("card-wrong/a.jsonl", '{"text": "a"}\n'),
        ("card-wrong/README.md", "---\nconfigs: one\n---\n"),
        ("hidden/_old/a.jsonl", '{"text": "a"}\n'),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    arrow = folder / "saved" / "data-00000-of-00001.arrow"
    arrow.parent.mkdir()
    (folder / "saved" / "state.json").write_text('{"_data_files": []}', encoding="utf-8")
    table = pa.table({"text": ["a"]})
    with pa.ipc.new_stream(arrow, table.schema) as stream:
        stream.write_table(table)
    (folder / "broken-link").mkdir()
    (folder / "broken-link" / "a.parquet").symlink_to("gone")


def _write_checkpoints(folder: Path) -> None:
    models = folder / "models"
    tiny_estimator().save_pretrained(models / "estimator")
    tiny_autoencoder(bottleneck_width=3).save_pretrained(models / "autoencoder")
    tiny_second_order().save_pretrained(models / "second-order")
    tiny_language_model().save_pretrained(models / "causal")
    for name, file, content in (
        ("without-config", "config.json", None),
        ("config-cut", "config.json", b'{"model_type": "entropy-'),
        ("config-list", "config.json", b"[]"),
        ("config-unknown", "config.json", b'{"model_type": "resnet"}'),
        ("config-short", "config.json", b'{"model_type": "entropy-estimator"}'),
        ("weights-cut", "model.safetensors", (models / "estimator" / "model.safetensors").read_bytes()[:-4000]),
        ("weights-text", "model.safetensors", b"not weights at all"),
        ("weights-missing", "model.safetensors", None),
        ("weights-of-another", "model.safetensors", (models / "causal" / "model.safetensors").read_bytes()),
    ):
        shutil.copytree(models / "estimator", models / name)
        (models / name / file).unlink()
        if content is not None:
            (models / name / file).write_bytes(content)
    for name, family in (
        ("without-context", "mamba"),
        ("other-head", "roformer"),
        ("not-causal", "llama"),
        ("code", "llama"),
    ):
        tiny_causal(family, vocab_size=97).save_pretrained(models / name)
    for name, setting in (("not-causal", {"is_causal": False}), ("code", {"model_type": "own", "auto_map": CODE})):
        config = json.loads((models / name / "config.json").read_text(encoding="utf-8"))
        (models / name / "config.json").write_text(json.dumps({**config, **setting}), encoding="utf-8")
    shutil.copytree(models / "weights-missing", models / "pickled")
    (models / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    sizes = models / "sizes-of-another"
    shutil.copytree(models / "estimator", sizes)
    config = json.loads((sizes / "config.json").read_text(encoding="utf-8"))
    (sizes / "config.json").write_text(json.dumps({**config, "decoder_width": 48}), encoding="utf-8")
    shutil.copytree(models / "estimator", models / "folds" / "fold-0-of-2")
    for fold in range(2):
        shutil.copytree(models / "estimator", models / "both-folds" / f"fold-{fold}-of-2")
    _write_tokenizers(models)


def _write_tokenizers(models: Path) -> None:
    shutil.copytree(models / "estimator", models / "tokenizer-of-another")
    copy_tokenizer(SHIPPED / "tokenizer", models / "tokenizer-of-another")
    tiny_language_model(vocabulary=8193).save_pretrained(models / "causal-of-text")
    copy_tokenizer(SHIPPED / "tokenizer", models / "causal-of-text")
    (models / "tokenizer-damaged").mkdir()
    (models / "tokenizer-damaged" / "tokenizer.json").write_text("{}", encoding="utf-8")
    small: Tokenizer = train_byte_pairs(sample_texts(2), 300)
    (models / "tokenizer-bare").mkdir()
    small.save(str(models / "tokenizer-bare" / "tokenizer.json"))
    words = Tokenizer(WordLevel({"<unk>": 0, "the": 1}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    (models / "tokenizer-of-words").mkdir()
    words.save(str(models / "tokenizer-of-words" / "tokenizer.json"))
    shutil.copytree(models / "causal-of-text", models / "causal-of-others")
    shutil.copy(models / "tokenizer-bare" / "tokenizer.json", models / "causal-of-others" / "tokenizer.json")


def _write_hostile(folder: Path) -> None:
    for hostile in ALL:
        if hostile.name in HOSTILE:
            hostile.make(folder / "hostile")


def _write_sidecars(folder: Path) -> None:
    """Write a sidecar, its documents, and documents that differ from these."""
    own = labelled([("a", (1, 2)), ("b", (3,)), ("c", (4, 5))])
    write_sidecar(folder, own)
    edited = [own[0], KeyedDocument("b", (3, 3)), own[2]]
    for name, documents in {
        "edited": edited,
        "more": [*own, KeyedDocument("d", (6,))],
        "none": [],
        "renamed": own,
        "other/source": edited,
        "fewer/source": own[:2],
    }.items():
        write_source(folder / f"{name}.parquet", documents)
    source = pq.read_table(folder / "source.parquet")
    pq.write_table(source.append_column("entropy", pa.array([1.0] * 3)), folder / "clash.parquet")
    with chdir(folder):
        assert run_module("pipeline.join", "--input", "source.parquet", "--labels", "labels", "--output", "joined") == 0
    write_sidecar(folder / "of-text", own, settings=replace(SETTINGS, tokenizer_sha256="t" * 64, text_column="text"))


def _write_datasets(folder: Path) -> None:
    sets = folder / "sets"
    nats = [[0.5] * len(ids) for ids in TOKENS]
    of_tokens: dict[str, Any] = {"vocabulary": 97, "tokenizer_sha256": None}
    write_annotated(sets / "sound", TOKENS, nats, **of_tokens)
    damaged = next(shutil.copytree(sets / "sound", sets / "damaged").rglob("*.parquet"))
    content = bytearray(damaged.read_bytes())
    content[400] ^= 1
    damaged.write_bytes(content)
    rising = [[0.1 * token for token in range(len(ids))] for ids in TOKENS]
    write_annotated(sets / "rising", TOKENS, rising, **of_tokens)
    write_annotated(sets / "calibrated", TOKENS, rising, **of_tokens, calibration=calibration(pooled=LINEAR))
    write_annotated(sets / "unshared", [[1, 1]], [[0.5, 1.5]], **of_tokens)
    write_annotated(sets / "others", TOKENS[::-1], nats, **of_tokens)
    write_annotated(sets / "unlabelled", TOKENS, [[float("nan")] * len(ids) for ids in TOKENS], **of_tokens)
    write_annotated(sets / "infinite", TOKENS, [[float("inf")] * len(ids) for ids in TOKENS], **of_tokens)
    write_annotated(sets / "beyond", TOKENS, nats, **{**of_tokens, "vocabulary": 5})
    write_annotated(sets / "torn", TOKENS, nats, **{**of_tokens, "window": 0})
    write_annotated(sets / "without-tokenizer", TOKENS, nats)
    write_annotated(sets / "not-of-text", TOKENS, nats)
    copy_tokenizer(SHIPPED / "tokenizer", sets / "not-of-text" / "tokenizer" / "exact")
    write_annotated(sets / "unfinished", TOKENS, nats, shards=2, **of_tokens)
    next((sets / "unfinished").rglob("*-00001-of-*.parquet")).unlink()
    write_annotated(sets / "two", TOKENS, nats, **of_tokens)
    shutil.copytree(sets / "two" / "data" / "exact", sets / "two" / "data" / "causal")
    foreign = Subset("exact", sets / "foreign").data / "train-00000-of-00001.parquet"
    foreign.parent.mkdir(parents=True)
    pq.write_table(pa.table({"input_ids": [[1]]}), foreign)
    old = next((shutil.copytree(sets / "sound", sets / "old")).rglob("*.parquet"))
    table = pq.read_table(old)
    metadata = {
        name: value.replace(b'"schema_version": ', b'"schema_version": 9')
        for name, value in table.schema.metadata.items()
    }
    pq.write_table(table.replace_schema_metadata(metadata), old)
    annotated(sets / "run")
    shutil.copytree(sets / "run" / "out", sets / "plan-damaged")
    (sets / "plan-damaged" / LEDGER_FOLDER / "exact" / PLAN_FILE).write_text('{"run": ', encoding="utf-8")
    _write_ledgers(sets)
    shutil.copytree(sets / "run" / "out", sets / "begun")
    for file in (sets / "begun").rglob("*.json"):
        if file.name != PLAN_FILE:
            file.unlink()
    (folder / "full").mkdir()
    (folder / "full" / "other.txt").write_text("another's file", encoding="utf-8")


def _write_trainings(folder: Path) -> None:
    """Write output folders of trainings that were begun or finished with other settings, or that are damaged."""
    for name in ("training", "training-damaged"):
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").touch()
    for name in ("training-finished/continue/unfinished.json", "training-over/README.md"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text('{"folds": 9, "training": {"steps": 5}}', encoding="utf-8")
    (folder / "training-lost" / "continue").mkdir(parents=True)
    (folder / "training-lost" / "continue" / "unfinished.json").write_text('{"folds"', encoding="utf-8")
    (folder / "training" / "unfinished.json").write_text('{"folds": 9}', encoding="utf-8")
    (folder / "training-damaged" / "unfinished.json").write_text('{"folds"', encoding="utf-8")


def _write_finished_training(folder: Path) -> None:
    """Write a finished training of eight steps, a copy that lacks the state to continue from, and their settings."""
    encoder = {"context": 16, "encoder-width": 8, "encoder-layers": 1, "encoder-heads": 2}
    decoder = {"decoder-width": 8, "decoder-layers": 1, "decoder-heads": 2, "bottleneck-width": 2}
    training = {"steps": 8, "decay": "trapezoid", "warmup": 1, "average": "swa", "average-from": 0.25}
    settings = {"held-out": 2, "model": encoder | decoder, "training": training}
    (folder / "short.yaml").write_text(json.dumps(settings), encoding="utf-8")
    tokens = ("--input", "tokens.parquet", "--tokenizer", "none", "--vocabulary", "97")
    with chdir(folder):
        assert run_module("jobs.train_estimator", "--config", "short.yaml", *tokens, "--output", "training-done") == 0
    gone = shutil.copytree(folder / "training-done", folder / "training-gone") / "continue"
    next(file for file in gone.iterdir() if file.name != "unfinished.json").unlink()


def _write_ledgers(sets: Path) -> None:
    """Write copies of an annotated dataset, each with one defect in a shard or in the ledger.

    A stranger or a damaged disk may cause such defects.
    """
    for name in ("link-out", "pipe", "receipt-cut", "receipt-out", "shard-damaged", "report-damaged", "of-text"):
        shutil.copytree(sets / "run" / "out", sets / name)
    ledger = Path(LEDGER_FOLDER, "exact")
    for name in ("link-out", "pipe"):
        next((sets / name).rglob("train-00003-*")).unlink()
    (sets / "link-out" / "data" / "exact" / "train-00003-of-00006.parquet").symlink_to(sets.resolve() / "run")
    os.mkfifo(sets / "pipe" / "data" / "exact" / "train-00003-of-00006.parquet")
    (sets / "receipt-cut" / ledger / RECEIPTS / "00000003.json").write_text('{"unit": 3', encoding="utf-8")
    named = sets / "receipt-out" / ledger / RECEIPTS / "00000003.json"
    named.write_text(named.read_text(encoding="utf-8").replace("train-", "../../../train-"), encoding="utf-8")
    shard = next((sets / "shard-damaged").rglob("train-00003-*"))
    shard.write_bytes(shard.read_bytes()[:-9] + bytes(9))
    (sets / "report-damaged" / ledger / REPORT_FILE).write_text("{", encoding="utf-8")
    plan = sets / "of-text" / ledger / PLAN_FILE
    without = plan.read_text(encoding="utf-8")
    plan.write_text(without.replace('"tokenizer_sha256": null', '"tokenizer_sha256": "d"'), encoding="utf-8")


def _write_settings(folder: Path) -> None:
    by_language = replace(calibration(by="language", pooled=LINEAR), labelled=LABELLED).to_json()
    (folder / "calibration.json").write_text(by_language, encoding="utf-8")
    (folder / "calibration-changed.json").write_text(by_language.replace("0.5", "0.75"), encoding="utf-8")
    for name, content in (
        ("list.yaml", "- input"),
        ("broken.yaml", "input: ["),
        ("unknown.yaml", "colour: red"),
        ("type.yaml", "limit: many"),
        ("nested.yaml", "training: {stepps: 3}"),
        ("empty.yaml", ""),
        ("no-input.yaml", "input: []"),
    ):
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "binary.yaml").write_bytes(bytes(range(128, 256)))
