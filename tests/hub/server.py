"""Routes from requests to the functions that answer them, and two servers on loopback: a Hub and its storage."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote

from tests.file_server import FileHandler, serving
from tests.hub import reading, storage, writing, xet_protocol
from tests.hub.answers import DROPPED, Answer, RefusedError
from tests.hub.exchange import Exchange
from tests.hub.hub import Hub, Request
from tests.hub.xet import XetStore

Route = tuple[str, str, Callable[..., Answer]]
NAME = "([^/]+/[^/]+?)"
REVISION = "(refs/(?:convert|pr)/[^/]+|[^/]+)"
OBJECT = "([0-9a-f]{64})"

HUB: list[Route] = [
    ("GET", "/api/whoami-v2", reading.whoami),
    ("POST", "/api/validate-yaml", writing.validate_yaml),
    ("POST", "/api/repos/create", writing.create),
]
READING: list[Route] = [
    ("GET", f"(?:/revision/{REVISION})?", reading.information),
    ("GET", f"/tree/{REVISION}(?:/(.*))?", reading.tree),
    ("POST", f"/paths-info/{REVISION}", reading.paths_info),
    ("GET", f"/commits/{REVISION}", reading.commits),
    ("GET", "/refs", reading.refs),
    ("GET", "/auth-check(/write)?", reading.access),
    ("GET", f"/resolve/{REVISION}/(.+)", reading.resolve),
    ("GET", f"/xet-(read|write)-token/{REVISION}", xet_protocol.token),
]
WRITING: list[Route] = [
    ("POST", f"/preupload/{REVISION}", writing.preupload),
    ("POST", f"/commit/{REVISION}", writing.commit),
    ("POST", f"/tag/{REVISION}", writing.create_tag),
    ("DELETE", "/tag/([^/]+)", writing.delete_tag),
    ("POST", "/branch/([^/]+)", writing.create_branch),
    ("DELETE", "/branch/([^/]+)", writing.delete_branch),
    ("POST", r"\.git/info/lfs/objects/batch", storage.batch),
    ("POST", r"\.git/info/lfs/objects/verify", storage.verify),
]
OBJECTS: list[Route] = [
    ("GET", f"/{OBJECT}", storage.give),
    ("PUT", f"/({OBJECT[1:-1]}(?:/[0-9]+)?)", storage.take),
    ("POST", f"/{OBJECT}/complete", storage.complete),
]
XET: list[Route] = [
    ("POST", f"/v1/xorbs/default/{OBJECT}", xet_protocol.take_xorb),
    ("POST", "/v1/shards", xet_protocol.take_shard),
    ("GET", f"/v1/reconstructions/{OBJECT}", xet_protocol.reconstruction),
    ("GET", f"/xorbs/{OBJECT}", xet_protocol.give_xorb),
]


def hub_answer(exchange: Exchange) -> Answer:
    if found := route(HUB, exchange, exchange.quoted_path):
        return found(exchange)
    named = re.fullmatch(rf"(?:/api)?/(?:(datasets|models)/)?{NAME}((?:\.git)?(?:/.*)?)", exchange.quoted_path)
    if named is None:
        raise RefusedError(404, "Sorry, we can't find the page you are looking for.")
    repository = exchange.find(named[1] or "models", unquote(named[2]))
    if found := route(READING, exchange, named[3]):
        return found(exchange, repository)
    if found := route(WRITING, exchange, named[3]):
        exchange.check_may_write(repository.owner)
        return found(exchange, repository)
    raise RefusedError(404, "Sorry, we can't find the page you are looking for.")


def storage_answer(exchange: Exchange) -> Answer:
    if found := route(XET, exchange, exchange.quoted_path):
        return found(exchange)
    named = re.fullmatch(rf"/(datasets|models)/{NAME}(/.+)", exchange.quoted_path)
    if named and (found := route(OBJECTS, exchange, named[3])):
        if exchange.authorization is not None:
            raise RefusedError(400, "a token of the Hub is not for its storage")
        return found(exchange, exchange.hub.repositories[named[1], named[2]])
    raise RefusedError(404, "NoSuchKey")


def route(routes: list[Route], exchange: Exchange, path: str) -> Callable[..., Answer] | None:
    """Return a function that answers the request, or None if no route matches the request's method and path.

    The returned function passes its own arguments to the function of the route, followed by the variable parts of the
    path.
    """
    method = "GET" if exchange.method == "HEAD" else exchange.method
    for accepted, pattern, function in routes:
        if accepted == method and (found := re.fullmatch(pattern, path)):
            parts = [part and unquote(part) for part in found.groups()]
            return lambda *arguments: function(*arguments, *parts)
    return None


class HubHandler(FileHandler):
    hub: Hub
    answers: Callable[[Exchange], Answer]

    def do_GET(self) -> None:
        exchange = Exchange(self.hub, self.command, self.path, self.headers, self.body())
        answer = self.hub.faults.instead(exchange.method, exchange.path, exchange.body) or self.answer_to(exchange)
        here = type(self).answers is storage_answer
        authorized = exchange.authorization is not None
        self.hub.requests.append(Request(exchange.method, exchange.path, answer.status, authorized, here))
        if answer.status == 0:
            self.close_connection = True
        elif answer.status == 200 and "Accept-Ranges" in answer.headers:
            self.answer_content(answer.content, dict(answer.headers))
        else:
            self.answer(answer.status, answer.content, dict(answer.headers))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def answer_to(self, exchange: Exchange) -> Answer:
        try:
            answer = type(self).answers(exchange)
        except RefusedError as refused:
            return refused.answer
        made_commit = exchange.method == "POST" and re.search("/api/.*/commit/", exchange.path)
        return DROPPED if made_commit and self.hub.faults.loses_commit() else answer

    def body(self) -> bytes:
        """Read the whole body, even if the request will be refused, so that the connection can be used again."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


@contextmanager
def hub_server(xet: Path | None = None, page: int = 1000) -> Iterator[Hub]:
    """Run a Hub for tests.

    Large files are exchanged by LFS. If `xet` is a folder, they are also exchanged by Xet, whose blocks the storage
    keeps in this folder. `page` is the maximum number of items in one answer.
    """
    hub = Hub(page, XetStore(xet) if xet else None)
    with ExitStack() as stack:
        for name, answers in (("storage", storage_answer), ("address", hub_answer)):
            handler = type("Handler", (HubHandler,), {"hub": hub, "answers": staticmethod(answers)})
            setattr(hub, name, stack.enter_context(serving(handler)))
        yield hub
