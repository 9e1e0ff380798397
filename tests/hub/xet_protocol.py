"""Version 1 of the protocol by which Xet's clients get tokens from the Hub and exchange data with the storage.

hf_xet first asks for version 2 and for grants. It is told that neither exists, and continues with version 1.
"""

import re
import time

from tests.hub.answers import Answer, RefusedError, as_json
from tests.hub.exchange import Exchange
from tests.hub.history import Repository
from tests.hub.xet import Segment, XetStore

HOUR = 3600


def token(exchange: Exchange, repository: Repository, scope: str, revision: str) -> Answer:
    """Answer with the storage's address and a token that allows reading or writing there for an hour."""
    store_of(exchange)
    if scope == "write":
        exchange.check_may_write(repository.owner)
    access, expires = f"xet-{scope}", int(time.time()) + HOUR
    headers = {
        "X-Xet-Cas-Url": exchange.hub.storage,
        "X-Xet-Access-Token": access,
        "X-Xet-Token-Expiration": str(expires),
    }
    return as_json({"casUrl": exchange.hub.storage, "accessToken": access, "exp": expires}, headers=headers)


def store_of(exchange: Exchange) -> XetStore:
    if exchange.hub.store is None:
        raise RefusedError(404, "this Hub has no Xet storage")
    return exchange.hub.store


def checked_store(exchange: Exchange, *scopes: str) -> XetStore:
    if exchange.authorization not in [f"Bearer xet-{scope}" for scope in scopes]:
        raise RefusedError(401, "the token of the Xet storage does not allow this")
    return store_of(exchange)


def take_xorb(exchange: Exchange, name: str) -> Answer:
    store = checked_store(exchange, "write")
    time.sleep(exchange.hub.faults.seconds_per_upload)
    return as_json({"was_inserted": store.put_xorb(name, exchange.body)})


def take_shard(exchange: Exchange) -> Answer:
    checked_store(exchange, "write").put_shard(exchange.body)
    return as_json({"result": 1})


def give_xorb(exchange: Exchange, name: str) -> Answer:
    """Answer with a block. The request needs no token, as if its URL were signed."""
    return Answer(200, store_of(exchange).xorb(name), {"Accept-Ranges": "bytes"})


def reconstruction(exchange: Exchange, name: str) -> Answer:
    """Answer which bytes of which blocks make up a file, or the requested range of the file."""
    store = checked_store(exchange, "read", "write")
    if name not in store.by_hash:
        raise RefusedError(404, f"no file {name}")
    file = store.by_hash[name]
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", exchange.headers.get("Range", ""))
    first, last = (int(asked[1]), int(asked[2])) if asked else (0, file.size - 1)
    if first >= file.size:
        raise RefusedError(416, "the range is beyond the file's end")
    terms: list[Segment] = []
    offset = at = 0
    for segment in file.segments:
        if at + segment.size > first and at <= last:
            offset = offset if terms else first - at
            terms.append(segment)
        at += segment.size
    fetched: dict[str, list[dict[str, object]]] = {}
    for term in terms:
        fetched.setdefault(term.xorb, []).append(fetch(exchange, store, term))
    told = [{"hash": term.xorb, "unpacked_length": term.size, "range": chunk_range(term)} for term in terms]
    return as_json({"offset_into_first_range": offset, "terms": told, "fetch_info": fetched})


def fetch(exchange: Exchange, store: XetStore, term: Segment) -> dict[str, object]:
    start, end = store.bytes_of(term)
    url = f"{exchange.hub.storage}/xorbs/{term.xorb}"
    return {"range": chunk_range(term), "url": url, "url_range": {"start": start, "end": end}}


def chunk_range(term: Segment) -> dict[str, int]:
    return {"start": term.start, "end": term.end}
