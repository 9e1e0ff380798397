"""Files of one shard of a dataset, in the format of another trainer.

A file gets its final name only when it is complete.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from pipeline.data.atomic import settle, unfinished_name
from pipeline.export.token_batches import TokenBatch


class ShardFiles(ABC):
    """Files of one shard. As a context manager, it deletes files that are not finished."""

    kinds: dict[str, np.dtype[Any]]
    """Type of each array, by its name. The arrays are ids, labels and, if only some tokens are trained on, masks."""

    def __init__(self, output: Path, name: str) -> None:
        self.output, self.name = output, name
        self._files: dict[Path, BinaryIO] = {}

    @abstractmethod
    def write(self, batch: TokenBatch) -> None:
        """Write a batch of documents."""

    def finish(self) -> None:
        """Close all files, and give them their final names."""
        for path, file in self._files.items():
            file.close()
            settle(Path(file.name), self.output / path)
        self._files.clear()

    def write_index(self, names: Sequence[str]) -> None:
        """Write the index of all shards' files, if the format has an index. `names` are the names of the shards."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)

    def _append(self, path: Path, content: bytes) -> None:
        """Append content to a file, whose path is relative to the output folder."""
        if path not in self._files:
            (self.output / path).parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = unfinished_name(self.output / path).open("wb")
        self._files[path].write(content)
