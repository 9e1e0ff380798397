"""A small Hugging Face Hub on loopback: one dataset at one commit, listed and read as the Hub's clients do it."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import parse_qs, urlsplit

from tests.file_server import FileHandler, serving

NAME = "user/name"
COMMIT = hashlib.sha1(b"a commit").hexdigest()
REVISIONS = {"main": COMMIT, "refs/convert/parquet": COMMIT, COMMIT: COMMIT}


class HubHandler(FileHandler):
    """Answers for `files`, by their paths in the dataset."""

    def do_GET(self) -> None:
        path = self.path_without_query
        if not path.startswith((f"/api/datasets/{NAME}", f"/datasets/{NAME}")):
            return self.refuse("RepoNotFound")
        found = re.fullmatch(rf"/(?:api/)?datasets/{NAME}(?:/(revision|tree|resolve)/(.+))?", path)
        if found is None:
            return self.refuse("EntryNotFound")
        asked = found[2] or "main"
        revision = next((name for name in REVISIONS if asked == name or asked.startswith(f"{name}/")), None)
        if revision is None:
            return self.refuse("RevisionNotFound")
        inside = asked[len(revision) + 1 :]
        if found[1] == "tree":
            return self.answer_tree(inside)
        if found[1] == "resolve":
            return self.answer_file(inside)
        return self.answer_json({"id": NAME, "sha": REVISIONS[revision], "private": False, "tags": [], "siblings": []})

    def answer_tree(self, folder: str) -> None:
        """The files and folders below a folder; of all depths if the query says recursive."""
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        below = [path for path in self.files if path.startswith(prefix)]
        if not below:
            return self.refuse("EntryNotFound")
        entries = {path: self.entry(path) for path in below}
        for path in below:
            for parent in PurePosixPath(path).parents:
                if str(parent).startswith(prefix) and str(parent) != ".":
                    entries[str(parent)] = {"type": "directory", "path": str(parent), "oid": "0" * 40, "size": 0}
        direct = {path: entry for path, entry in entries.items() if recursive or "/" not in path[len(prefix) :]}
        return self.answer_json(list(direct.values()))

    def answer_file(self, path: str) -> None:
        if path not in self.files:
            return self.refuse("EntryNotFound")
        return self.answer_content(self.files[path], {"ETag": f'"{self.entry(path)["oid"]}"', "X-Repo-Commit": COMMIT})

    def entry(self, path: str) -> dict[str, object]:
        content = self.files[path]
        return {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, code: str) -> None:
        self.answer(404, b"", {"X-Error-Code": code})


@contextmanager
def hub_server(files: dict[str, bytes]) -> Iterator[str]:
    """The address of a Hub whose dataset `user/name` has these files."""
    with serving(type("Handler", (HubHandler,), {"files": files})) as address:
        yield address
