"""Train a byte-level BPE tokenizer, which encodes every string and decodes it back exactly.

Writes a folder that `AutoTokenizer.from_pretrained` loads. The separator `<|endoftext|>` has id 0. Training of a
language model adds the separator before each document, but annotation never adds it.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cyclopts
from tokenizers import Tokenizer

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.documents import Column, iterate_rows
from pipeline.data.files import File, pinned
from pipeline.data.inputs import Inputs
from pipeline.data.tokenizer import SEPARATOR, TOKENIZER_FILE, id_count, train_byte_pairs
from pipeline.messages import say
from pipeline.models.checkpoint import require_new_folder
from pipeline.models.model_card import CARD_FILE, command_line, model_card
from schemas.rows import TEXT_COLUMN

MEASURED_DOCUMENTS = 1000


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config(Inputs):
    """Settings of the job: text, vocabulary and output."""

    output: Path
    """Folder to write the tokenizer to."""
    vocabulary: int = 8192
    """Number of tokens, including the separator and one token for each of the 256 byte values."""
    text_column: str = TEXT_COLUMN
    """Name of the column that holds the text."""
    limit: int | None = None
    """Train on at most this many documents."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "limit", "longest_document")


def train_tokenizer(config: Config) -> None:
    """Train a byte-level BPE tokenizer on documents and write its folder."""
    require_new_folder(config.output)
    found = config.find(pinned(config.input))
    found.tell()
    files = found.files
    tokenizer = train_byte_pairs(texts(files, config), config.vocabulary)
    sample = list(itertools.islice(texts(files, config), MEASURED_DOCUMENTS))
    if not sample:
        raise ValueError("the input has no text to train on; name files with text in --input")
    save(tokenizer, config)
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(sample))
    bytes_per_token = sum(len(text.encode()) for text in sample) / max(1, tokens)
    (config.output / CARD_FILE).write_text(card(tokenizer, files, config, bytes_per_token), encoding="utf-8")
    say(f"{config.output}: {id_count(tokenizer):,} tokens, {bytes_per_token:.2f} bytes per token")


def save(tokenizer: Tokenizer, config: Config) -> None:
    """Write the tokenizer as a folder that `AutoTokenizer.from_pretrained` loads.

    The largest file, tokenizer.json, is written without white space, in 230 kB instead of 550 kB.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, and not needed for --help

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR, pad_token=SEPARATOR
    )
    fast.save_pretrained(config.output)
    tokenizer.save(str(config.output / TOKENIZER_FILE), pretty=False)


def card(tokenizer: Tokenizer, files: Sequence[File], config: Config, bytes_per_token: float) -> str:
    """Return the model card of the tokenizer."""
    return model_card(
        "Byte-level BPE tokenizer",
        f"Every string has an encoding. `{SEPARATOR}` has id 0 and separates documents in training.",
        {
            "trained on": f"{sum(1 for _ in texts(files, config)):,} documents",
            "vocabulary": id_count(tokenizer),
            f"bytes per token, first {MEASURED_DOCUMENTS} documents": bytes_per_token,
        },
        command=command_line("jobs.train_tokenizer", sys.argv[1:]),
        tags=["tokenizer"],
        usage="AutoTokenizer.from_pretrained(THIS_FOLDER)",
    )


def texts(files: Sequence[File], config: Config) -> Iterator[str]:
    """Yield the text of each document, and skip rows without text."""
    for rows in iterate_rows(files, Column(config.text_column, longest=config.longest), config.limit):
        yield from (text for text in rows.column(config.text_column).to_pylist() if text)


if __name__ == "__main__":
    run(train_tokenizer, "jobs.train_tokenizer", resumes=False)
