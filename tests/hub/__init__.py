"""A small Hugging Face Hub on loopback, for tests: the real clients upload to it and read from it.

    with hub_server() as hub:
        api = HfApi(endpoint=hub.address, token=hub.writer)

Repositories of datasets and models with commits, branches and tags; users and tokens; large files by LFS, and by Xet
where `hub_server(xet=FOLDER)` says so; faults at any time (`hub.faults`), and a log of all requests. It has no pull
requests, discussions, Spaces, search or deletion of repositories. Clients of this process upload by Xet unless
`huggingface_hub.constants.HF_HUB_DISABLE_XET` is set, as the fixture `hub` does; those of others are told by
`hub.environment`.
"""

from tests.hub.faults import Faults, Kind
from tests.hub.history import Commit
from tests.hub.hub import Hub, Request
from tests.hub.server import hub_server

__all__ = ["Commit", "Faults", "Hub", "Kind", "Request", "hub_server"]
