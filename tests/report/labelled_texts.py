"""Small annotated datasets of texts, with a tokenizer, positive, negative and null labels, and a source column."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.data.shards import annotated_rows, write_shard
from pipeline.data.tokenizer import TOKENIZER_FILE, encode, train_byte_pairs
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, ROUNDING_NATS, annotated_schema
from schemas.layout import Subset, shard_name
from tests.builders import PROVENANCE

SOURCE = pa.schema([("text", pa.string()), ("id", pa.string()), ("dump", pa.string())])
HOSTILE = """</script><script>document.title = 'taken'</script><img src=x onerror="document.title='taken'">'"&amp;$x"""
TEXTS = [
    "The cat sat on the mat.\n\nThe cat sat.",
    HOSTILE,
    "",
    "  two  spaces,\ttabs and € 猫 🐈‍⬛ ends",
    "\u202eright to left \x1b[31mred\x07",
    "The mat sat on the cat, the cat on the mat, and so on. " * 8,
]
TOKENIZER = train_byte_pairs([text for text in TEXTS if text.startswith("The")], 300)
TOKENIZER.add_tokens(["</script>", "<script>", "<img", "$x"])


def write_texts(folder: Path, texts: Sequence[str] = TEXTS, *, shards: int = 1, seed: int = 0) -> Path:
    """Write an annotated dataset of these texts. A tenth of the labels are null, some are negative, some are zero.

    The column `dump` has two alternating values.
    """
    random = np.random.default_rng(seed)
    ids = encode(TOKENIZER, texts)
    schema = annotated_schema(SOURCE, replace(PROVENANCE, method="second-order", vocabulary=TOKENIZER.get_vocab_size()))
    rows_a_shard = -(-len(texts) // shards)
    for index in range(shards):
        rows = range(index * rows_a_shard, min(len(texts), (index + 1) * rows_a_shard))
        source = [{"text": texts[row], "id": f"id-{row}", "dump": ["a", HOSTILE][row % 2]} for row in rows]
        labels = {name: [_labels(len(ids[row]), random) for row in rows] for name in (ENTROPY, EXPECTED_ENTROPY)}
        batch = pa.RecordBatch.from_pylist(source, schema=SOURCE).select(["id", "dump"])
        table = annotated_rows(batch, [ids[row] for row in rows], labels, schema)
        write_shard(Subset("second-order", folder).data / shard_name(index, shards), [table], schema)
    save(TOKENIZER, Subset("second-order", folder).tokenizer)
    return folder


def save(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / TOKENIZER_FILE))


def _labels(tokens: int, random: np.random.Generator) -> np.ndarray:
    labels_N = np.round(random.normal(2, 2, tokens) / ROUNDING_NATS) * ROUNDING_NATS
    labels_N[random.random(tokens) < 0.1] = 0
    labels_N[random.random(tokens) < 0.1] = np.nan
    return labels_N.astype(np.float32)
