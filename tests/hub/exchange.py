"""A request, with everything that is needed to answer it, and the rights of its sender."""

import json
from dataclasses import dataclass
from email.message import Message
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from tests.hub.answers import Answer, RefusedError, as_json
from tests.hub.history import Repository
from tests.hub.hub import Hub, User


@dataclass(frozen=True)
class Exchange:
    hub: Hub
    method: str
    target: str
    """Path and query, exactly as the client sent them."""
    headers: Message
    body: bytes

    @cached_property
    def quoted_path(self) -> str:
        return urlsplit(self.target).path

    @cached_property
    def path(self) -> str:
        return unquote(self.quoted_path)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def says(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    @cached_property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")

    @cached_property
    def user(self) -> User | None:
        if self.authorization is None:
            return None
        user = self.hub.users.get(self.authorization.removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return user

    @property
    def known_user(self) -> User:
        if self.user is None:
            raise RefusedError(401, "Invalid username or password.")
        return self.user

    def check_may_write(self, owner: str) -> None:
        if self.known_user.role != "write":
            raise RefusedError(403, "Forbidden: you must use a write token")
        if self.known_user.name != owner:
            raise RefusedError(403, f'You don\'t have the rights to write under the namespace "{owner}"')

    def find(self, kind: str, name: str) -> Repository:
        """Return the repository of this kind (`datasets` or `models`) and name.

        Raises:
            RefusedError: if the repository does not exist, or the sender of the request may not see it.
        """
        repository = self.hub.repositories.get((kind, name))
        owner = self.user.name if self.user else None
        if repository is None or (repository.private and repository.owner != owner):
            raise RefusedError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return repository

    def paged(self, items: list[dict[str, object]], limit: int) -> Answer:
        """Answer with at most `limit` items from the query's cursor on, and a link to the next page if more remain."""
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + limit < len(items):
            query = urlencode({**self.query, "cursor": start + limit}, doseq=True)
            headers["Link"] = f'<{self.hub.address}{self.quoted_path}?{query}>; rel="next"'
        return as_json(items[start : start + limit], headers=headers)
