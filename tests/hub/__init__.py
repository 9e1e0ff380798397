"""A small Hugging Face Hub on loopback, for tests. The real clients upload to it and read from it.

    with hub_server() as hub:
        api = HfApi(endpoint=hub.address, token=hub.writer)

The Hub has repositories of datasets and models with commits, branches and tags. It has users with tokens. Large files
are exchanged by LFS, and also by Xet if `hub_server(xet=FOLDER)` started the Hub. `hub.faults` makes requests fail at
any time, and `hub.requests` is the log of all requests. The Hub has no pull requests, discussions, Spaces, search or
deletion of repositories.

Clients in this process upload by Xet unless `huggingface_hub.constants.HF_HUB_DISABLE_XET` is set. The fixture `hub`
sets it. Clients in other processes take their settings from `hub.environment`.
"""

from tests.hub.faults import Faults, Kind
from tests.hub.history import Commit
from tests.hub.hub import Hub, Request
from tests.hub.server import hub_server

__all__ = ["Commit", "Faults", "Hub", "Kind", "Request", "hub_server"]
