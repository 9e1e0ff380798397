"""The README.md of an annotated dataset: how `load_dataset` finds its files, what a label means, where it came from."""

from dataclasses import asdict

from huggingface_hub import DatasetCardData

from schemas.annotations import DATA_FOLDER, DESCRIPTIONS, EXPECTED_ENTROPY, Provenance
from schemas.ledger import Counts

HEADER = "Per-token entropy labels"


def dataset_card(provenance: Provenance, counts: Counts, shards_sha256: str) -> str:
    """Markdown with the front matter that `datasets` and the Hugging Face Hub read.

    The digest of the shards stands in the configuration's description because `datasets` (5.2) names its cache after
    the folder's last name and the configuration alone: `a/annotated` would be given out for `b/annotated`.
    """
    configuration = {
        "config_name": "default",
        "description": f"{provenance.method} labels, shards {shards_sha256}",
        "data_files": [{"split": "train", "path": f"{DATA_FOLDER}/*.parquet"}],
    }
    front_matter = DatasetCardData(configs=[configuration], tags=["token-entropy"]).to_yaml()
    columns = [name for name in DESCRIPTIONS if provenance.method == "second-order" or name != EXPECTED_ENTROPY]
    described = "\n".join(f"- `{name}`: {DESCRIPTIONS[name]}" for name in columns)
    origin = "\n".join(f"| {name} | {_shown(value)} |" for name, value in asdict(provenance).items())
    return f"""---
{front_matter}
---
# {HEADER}

{counts.rows:,} documents, {counts.tokens:,} tokens, {counts.mean_entropy:.3f} nats a labelled token.

{described}

Labels are rounded to 1/128 nat. `entropy[i]` speaks of `input_ids[i]`; no special tokens were added. Exact labels
are differences of code lengths and may be negative: they are kept as they are. The other columns are the source's.

```python
from datasets import load_dataset
dataset = load_dataset(THIS_FOLDER, split="train")
```

| provenance | |
|---|---|
{origin}
"""


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
