"""Credentials in text: found in what a user names, and removed from what is shown or written."""

import os
import re
from urllib.parse import quote, unquote_plus

REMOVED = "***"
SHORTEST_SECRET = 8  # characters; a shorter value stands in ordinary words too
SECRET_PARAMETER = re.compile("token|sig|signature|key|secret|credential|password", re.IGNORECASE)
SECRET_VARIABLE = re.compile("TOKEN|SECRET|PASSWORD|CREDENTIAL|_KEY$", re.IGNORECASE)
USER = re.compile(r"(?<=://)[^/?#\s]*@")
PASSWORD = re.compile(r"https?://[^/?#\s]*@|://[^/?#\s]*:[^/?#\s]*@", re.IGNORECASE)
PARAMETER = re.compile(r"(?<=[?&;#])([^?=&;#\s]+)=([^&;#\s]*)")
TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
BEARER = re.compile(r"(Bearer\s+)\S+", re.IGNORECASE)


def redacted(text: str) -> str:
    """The text without credentials: `***` stands for each.

    Credentials are users and passwords in URLs, query parameters with a telling name, Hugging Face tokens, bearer
    tokens, and the values of environment variables with a telling name, as they are or quoted for a URL.
    """
    for secret in _environment_secrets():
        text = text.replace(secret, REMOVED)
    text = USER.sub(f"{REMOVED}@", text)
    text = PARAMETER.sub(lambda found: f"{found[1]}={REMOVED}" if _is_secret(found[1]) else found[0], text)
    text = BEARER.sub(rf"\1{REMOVED}", text)
    return TOKEN.sub(REMOVED, text)


def told(error: BaseException) -> str:
    """What an error says, in one line and without credentials."""
    return redacted(" ".join(str(error).split())) or type(error).__name__


def has_credential(url: str) -> bool:
    """Whether the URL holds a password or a query parameter with a telling name.

    A user alone is a credential over HTTP, where it may be a token; elsewhere it may be a container's name
    (`abfs://container@account...`).
    """
    return PASSWORD.search(url) is not None or any(_is_secret(found[1]) for found in PARAMETER.finditer(url))


def _is_secret(parameter: str) -> bool:
    return SECRET_PARAMETER.search(unquote_plus(parameter)) is not None


def _environment_secrets() -> list[str]:
    """The longest first: one may be a part of another."""
    values = [value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)]
    secrets = {form for value in values if len(value) >= SHORTEST_SECRET for form in (value, quote(value, safe=""))}
    return sorted(secrets, key=len, reverse=True)
