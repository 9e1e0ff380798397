"""Input documents: the settings shared by all commands that read documents, and the files that the settings select.

Annotated datasets below an input folder are left out. A run's own output is left out too, since it would otherwise be
part of the run's input when the run is resumed.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.files import File, Folder, distinct, is_url, locate
from pipeline.data.skipped import LONGEST_DOCUMENT
from pipeline.data.splits import NOT_DATA, left_out_note, select
from pipeline.messages import say
from schemas.layout import DATA_FOLDER, LEDGER_FOLDER, TOKENIZER_FOLDER
from schemas.receipts import PLAN_FILE

PLAN = re.compile(rf"(.+/){LEDGER_FOLDER}/[^/]+/{re.escape(PLAN_FILE)}")


@dataclass(frozen=True)
class InputFiles:
    """Files of documents, in the order in which they are read."""

    files: Sequence[File]
    choices: tuple[str, ...] = ()
    """Selected configuration and split of each folder, for example `config en, split train`. A configuration or a split
    is named only if the folder has several."""
    notes: Sequence[str] = ()
    """Messages about what was selected and left out."""

    def tell(self) -> None:
        """Print the notes on standard error. If several processes train together, only rank 0 prints them."""
        for note in self.notes if os.environ.get("RANK", "0") == "0" else ():
            say(note, file=sys.stderr)

    @property
    def decisive(self) -> dict[str, object]:
        """Settings, by name, that must be the same when a job is resumed.

        `split` and `config_name` are None, since `choices` holds their effect. `choices` is None if nothing had to be
        selected.
        """
        return {"split": None, "config_name": None, "choices": self.choices or None}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Settings for the documents to read."""

    input: tuple[str, ...]
    """Documents to read, as for --input of pipeline.annotate: paths, folders, globs or URLs (hf://datasets/user/name,
    https://, s3://) of Parquet, JSON lines or text files."""
    split: str | None = None
    """Split to read from the folders and datasets in the input, or `all` for all splits. Default: the only split, or
    `train` if there are several."""
    config_name: str | None = None
    """Configuration to read from the folders and datasets in the input. Default: the only configuration, or the one
    that the dataset declares as its default."""
    longest_document: int | None = None
    """Maximum size of a document in bytes: the bytes of its text, or four bytes for each of its token ids. Default: 4
    MiB. The row of a longer document is kept, but without tokens, and the number of these rows is reported. A worker
    may need 250 bytes of memory for each byte of a document."""

    @property
    def longest(self) -> int:
        """Maximum size of a document in bytes: `longest_document`, or the default."""
        return LONGEST_DOCUMENT if self.longest_document is None else self.longest_document

    def find(self, inputs: Sequence[str], output: Path | None = None) -> InputFiles:
        """Find the files that `inputs` name, with these settings.

        `inputs` are the values of the setting `input`. Datasets on the Hub may be pinned to commits in them.

        Raises:
            ValueError, ConnectionError: as find_documents does.
        """
        return find_documents(inputs, self.split, self.config_name, output)

    def find_any(self, inputs: Sequence[str]) -> InputFiles:
        """Find the files that `inputs` name.

        If `inputs` is empty, return no files. The caller then reads built-in documents.
        """
        if inputs:
            return self.find(inputs)
        _require_choice((), self.split, self.config_name)
        return InputFiles(())


def find_documents(
    inputs: Sequence[str], split: str | None = None, config_name: str | None = None, output: Path | None = None
) -> InputFiles:
    """Find the files that the inputs name, in the order of the inputs.

    Each folder or dataset contributes one split, as in `load_dataset`, or all splits if `split` is `all`. Annotated
    datasets in a folder are left out. If an input is a glob, its matches below `output` are left out too.

    Raises:
        ValueError: as find_files does, or if the split or the configuration is missing or ambiguous.
        ConnectionError: if a store cannot be reached now.
    """
    if not inputs:
        raise ValueError("no input is named; name files, folders or URLs with `input`")
    files, choices, notes = list[File](), list[str](), list[str]()
    located_inputs = [(named, locate(named)) for named in inputs]
    _require_choice([entry for _, located in located_inputs for entry in located.entries], split, config_name)
    for named, located in located_inputs:
        entries, written = _without_output(named, located.entries, output)
        if written:
            notes.append(left_out_note(named, "in the `output`", written))
        for entry in entries:
            if isinstance(entry, File):
                files.append(entry)
                continue
            folder, annotated = _without_annotated(entry)
            if annotated:
                notes.append(left_out_note(entry.url, "of annotated datasets", annotated))
            selection = select(folder, split, config_name)
            files += selection.files
            choices += [selection.choice] if selection.choice else []
            notes += selection.notes
        if located.left_out:
            notes.append(left_out_note(named, NOT_DATA, located.left_out))
    return InputFiles(distinct(files), tuple(choices), notes)


def _without_annotated(folder: Folder) -> tuple[Folder, list[str]]:
    """Return the folder without the annotated datasets below it, and the paths of the data files of these datasets."""
    roots = {match[1] for path in folder.files if (match := PLAN.fullmatch(path))}
    written = tuple(f"{root}{part}/" for root in roots for part in (DATA_FOLDER, TOKENIZER_FOLDER, LEDGER_FOLDER))
    kept = {path: file for path, file in folder.files.items() if not path.startswith(written)}
    return replace(folder, files=kept), [path for path in folder.data if path not in kept]


def _without_output(
    named: str, entries: Sequence[File | Folder], output: Path | None
) -> tuple[list[File | Folder], list[str]]:
    """Return the entries of an input that are outside the output folder, and the URLs of the entries inside it.

    An entry is a file or a folder. All entries are kept if `output` is None, or if the input `named` is not a glob on a
    disk.
    """
    if output is None or is_url(named) or Path(named).exists():
        return list(entries), []
    below = [entry.url for entry in entries if Path(entry.url).resolve().is_relative_to(output)]
    return [entry for entry in entries if entry.url not in below], below


def _require_choice(entries: Sequence[File | Folder], split: str | None, config_name: str | None) -> None:
    if any(isinstance(entry, Folder) for entry in entries):
        return
    for flag, value in (("`split`", split), ("`config_name`", config_name)):
        if value is not None:
            raise ValueError(
                f"{flag} {value} selects within folders and datasets, but the input has none; leave it out"
            )
