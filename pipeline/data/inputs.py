"""The flags that every command with an --input of documents has, and the files that they name."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data.files import File, Folder, distinct, is_url, locate
from pipeline.data.skipped import LONGEST_DOCUMENT
from pipeline.data.splits import NOT_DATA, left_out_note, part_of
from pipeline.messages import say
from schemas.layout import DATA_FOLDER, LEDGER_FOLDER, TOKENIZER_FOLDER
from schemas.receipts import PLAN_FILE

PLAN = re.compile(rf"(.+/){LEDGER_FOLDER}/[^/]+/{re.escape(PLAN_FILE)}")


@dataclass(frozen=True)
class Found:
    """The files of documents, in the order in which they are read."""

    files: Sequence[File]
    choices: tuple[str, ...] = ()
    """What was chosen of each folder that has several configurations or splits, as in `split train`."""
    notes: Sequence[str] = ()
    """Lines on what was chosen and what was left out."""

    def tell(self) -> None:
        """Says on standard error what was chosen and left out; of processes that train together the first one does."""
        for note in self.notes if os.environ.get("RANK", "0") == "0" else ():
            say(note, file=sys.stderr)

    @property
    def decisive(self) -> dict[str, object]:
        """What a resumed job must agree with, by the names of the settings; unset where there was no choice."""
        return {"split": None, "config_name": None, "choices": self.choices or None}


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Which documents."""

    input: tuple[str, ...]
    """Documents, as --input of pipeline.annotate takes them: Parquet, JSON lines or text files, folders, globs or URLs
    of these (hf://datasets/user/name, https://, s3://)."""
    split: str | None = None
    """Split of the folders and datasets in the input, or `all`; the only one, or else `train`, by default."""
    config_name: str | None = None
    """Configuration of the folders and datasets in the input that have several; their default one by default."""
    longest_document: int | None = None
    """Bytes of text, or four times the token ids, of the longest document that is read; 4 MiB by default. The row of a
    longer one stays, without tokens, and is counted. A worker may need 250 bytes of memory for each."""

    @property
    def longest(self) -> int:
        """Bytes of the longest document."""
        return LONGEST_DOCUMENT if self.longest_document is None else self.longest_document

    def find(self, inputs: Sequence[str], output: Path | None = None) -> Found:
        """The files of these inputs, which are `input` as it is or pinned to a commit.

        Raises:
            ValueError, ConnectionError: as find_documents does.
        """
        return find_documents(inputs, self.split, self.config_name, output)

    def find_any(self, inputs: Sequence[str]) -> Found:
        """The same, or nothing where no input is named and built-in documents are read."""
        if inputs:
            return self.find(inputs)
        _require_choice((), self.split, self.config_name)
        return Found(())


def find_documents(
    inputs: Sequence[str], split: str | None = None, config_name: str | None = None, output: Path | None = None
) -> Found:
    """The files that the inputs name, in their order: of a folder or a dataset one split, as `load_dataset` has it.

    Annotated datasets in a folder are left out, and of a glob what lies in the folder `output`: else what a run writes
    would be its input when it is resumed.

    Raises:
        ValueError: as find_files does, or if there is no split or configuration to take.
        ConnectionError: if a store cannot be reached now.
    """
    if not inputs:
        raise ValueError("no input is named; name files, folders or URLs with --input")
    files, choices, notes = list[File](), list[str](), list[str]()
    located = [(named, locate(named)) for named in inputs]
    _require_choice([place for _, found in located for place in found.places], split, config_name)
    for named, found in located:
        kept, ours = _without_output(named, found.places, output)
        if ours:
            notes.append(left_out_note(named, "in the --output", ours))
        for place in kept:
            if isinstance(place, File):
                files.append(place)
            else:
                folder, annotated = without_annotated(place)
                if annotated:
                    notes.append(left_out_note(place.url, "of annotated datasets", annotated))
                part = part_of(folder, split, config_name)
                files += part.files
                choices += [part.choice] if part.choice else []
                notes += part.notes
        if found.left_out:
            notes.append(left_out_note(named, NOT_DATA, found.left_out))
    return Found(distinct(files), tuple(choices), notes)


def without_annotated(folder: Folder) -> tuple[Folder, list[str]]:
    """The folder without the annotated datasets below it, and the paths of their data."""
    roots = {found[1] for path in folder.files if (found := PLAN.fullmatch(path))}
    written = tuple(f"{root}{part}/" for root in roots for part in (DATA_FOLDER, TOKENIZER_FOLDER, LEDGER_FOLDER))
    kept = {path: file for path, file in folder.files.items() if not path.startswith(written)}
    return replace(folder, files=kept), [path for path in folder.data if path not in kept]


def _without_output(
    named: str, places: Sequence[File | Folder], output: Path | None
) -> tuple[list[File | Folder], list[str]]:
    """The places that do not lie below the output, unless one is named, and the URLs of the others."""
    if output is None or is_url(named) or Path(named).exists():
        return list(places), []
    ours = [place.url for place in places if Path(place.url).resolve().is_relative_to(output)]
    return [place for place in places if place.url not in ours], ours


def _require_choice(places: Sequence[File | Folder], split: str | None, config_name: str | None) -> None:
    if any(isinstance(place, Folder) for place in places):
        return
    for flag, value in (("--split", split), ("--config-name", config_name)):
        if value is not None:
            raise ValueError(
                f"{flag} {value} chooses within folders and datasets, and the input has none; leave it out"
            )
