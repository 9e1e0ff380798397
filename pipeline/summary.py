"""What the annotation job prints when it ends: the run in figures, and a few tokens with their entropies."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from datasets import Dataset, disable_progress_bars, load_dataset

from pipeline.data.tokenizer import TOKENIZER_FILE, load_tokenizer
from pipeline.engine.ledger import Receipt
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, INPUT_IDS

EXAMPLE_TOKENS = 16


@dataclass(frozen=True)
class Summary:
    """A dataset in figures, added up from its receipts."""

    documents: int
    tokens: int
    labelled_tokens: int
    text_bytes: int
    nats: float

    @classmethod
    def of(cls, receipts: Collection[Receipt]) -> Self:
        return cls(
            documents=sum(receipt.rows for receipt in receipts),
            tokens=sum(receipt.tokens for receipt in receipts),
            labelled_tokens=sum(receipt.labelled_tokens for receipt in receipts),
            text_bytes=sum(receipt.text_bytes for receipt in receipts),
            nats=sum(receipt.nats for receipt in receipts),
        )

    @property
    def mean_entropy(self) -> float:
        return self.nats / max(1, self.labelled_tokens)


def print_summary(output: Path, summary: Summary, *, new_tokens: int, seconds: float) -> None:
    """Documents, tokens, tokens/s, mean entropy, bits per byte, place."""
    tokens, labelled, mean = summary.tokens, summary.labelled_tokens, summary.mean_entropy
    bits = f"{mean / math.log(2) * tokens / summary.text_bytes:.3f}" if summary.text_bytes else "unknown without text"
    print(f"documents      {summary.documents:,}")
    print(f"tokens         {tokens:,}" + (f", {labelled:,} of them labelled" if labelled < tokens else ""))
    print(f"tokens/s       {f'{new_tokens / seconds:,.0f}' if new_tokens else 'none: the dataset was complete'}")
    print(f"mean entropy   {mean:.3f} nats a token")
    print(f"bits per byte  {bits}")
    print(f"dataset        {output}")


def print_examples(output: Path) -> None:
    """The first tokens of a document with their labels, read back as a user would."""
    disable_progress_bars()
    dataset = load_dataset(str(output), split="train")
    assert isinstance(dataset, Dataset)
    row = next((row for row in dataset if len(row[INPUT_IDS]) >= EXAMPLE_TOKENS), None)
    if row is None:
        return
    ids = row[INPUT_IDS][:EXAMPLE_TOKENS]
    print(f'\n>>> dataset = load_dataset("{output}", split="train")   # {dataset.num_rows:,} rows')
    print("token            " + "".join(f"{name:>18}" for name in (ENTROPY, EXPECTED_ENTROPY) if name in row))
    for place, token in enumerate(_shown(ids, output / "tokenizer")):
        values = (row[name][place] for name in (ENTROPY, EXPECTED_ENTROPY) if name in row)
        print(f"{token:<17}" + "".join(f"{'':>18}" if value is None else f"{value:>18.2f}" for value in values))


def _shown(ids: list[int], tokenizer_folder: Path) -> list[str]:
    if not (tokenizer_folder / TOKENIZER_FILE).is_file():
        return [str(token) for token in ids]
    tokenizer = load_tokenizer(tokenizer_folder)
    return [repr(tokenizer.decode([token], skip_special_tokens=False)) for token in ids]
