"""Cleaning of text before it is shown. Credentials are removed, and control characters are escaped.

Commands print with `say`. `describe` and `one_line` clean the messages of errors. `LineFormatter` cleans log records.
"""

import logging
import os
import re
import sys
from html import escape
from typing import Any, TextIO
from urllib.parse import quote, unquote_plus

REMOVED = "***"
SHORTEST_SECRET = 7  # characters; shorter values occur in ordinary words too
TELLING = re.compile(
    "token|sig|key|secret|credential|passw|pwd|auth|bearer|cookie|session|jwt|hmac|private|ticket|policy|hdnts",
    re.IGNORECASE,
)
# Names that suggest a secret only as whole words, because they also occur within other words.
TELLING_WORD = re.compile(
    r"(?:^|[-_.])(?:pass|pw|pat|pin|code|sid|hash|access|otp|nonce|refresh|verify|secure|e|se|st)(?:$|[-_.])",
    re.IGNORECASE,
)
SECRET_VARIABLE = re.compile(
    "TOKEN|SECRET|PASSW|CREDENTIAL|KEYS?$|KEY_ID$|_(PASS|PAT|PWD|AUTH|COOKIE|JWT|DSN)$|CONN(ECTION)?_?STR",
    re.IGNORECASE,
)
# Repetitions before a required character are bounded, so that even a name of a megabyte is searched at once.
# A password may hold any character. Digits up to a slash are a port; the path after it may hold an @.
SLASHED = r"[^/?#\s@:]+:(?!\d+[/?#])[^\s@?&'\"]{0,300}@"
USER = re.compile(rf"(?<=://)(?:[^/?#\s]*@|{SLASHED})")
PASSWORD = re.compile(rf"https?://[^/?#\s]*@|://[^/?#\s]*:[^/?#\s]*@|://{SLASHED}", re.IGNORECASE)
PARAMETER = re.compile(r"(?<=[?&;#])([^?=&;#\s/]+)=([^&;#\s]*)")
URL = re.compile(r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]{0,30}://[^\s'\"]+", re.IGNORECASE)
# Parameters that choose a file or its version. Any other parameter may hold a credential.
HARMLESS = re.compile(
    "dl|download|export|format|lang|limit|offset|page|raw|ref|rev|revision|size|version|versionid", re.IGNORECASE
)
# The text that the first group matches is kept.
SHAPES = (
    re.compile(
        r"((?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|digest|token)\s+)?)[^\s'\",;]+", re.I
    ),
    re.compile(r"((?:set-)?cookie['\"]?\s*[:=]\s*['\"]?)[^\n'\"]+", re.I),
    re.compile(r"(\bbearer\s+)\S+", re.I),
    re.compile(r"(\bx-[\w-]{0,20}(?:key|token|auth|secret)\s*:\s*)\S+", re.I),
    re.compile(
        r"((?:secret|password|passwd|api[-_]?key|access[-_]?key|account[-_]?key|(?:access|auth|api|session|hf|"
        r"refresh|security|id)[-_]?token|(?<![\w-])token)['\"]?\s*[:=]\s*)(?:'[^']+'|\"[^\"]+\"|(?<==)[^\s'\",;&)]+)",
        re.I,
    ),
    re.compile(r"()\bhf_(?:oauth_|jwt_)?[A-Za-z0-9]{8,}"),
    re.compile(r"()\b(?:gh[oprsu]_|github_pat_|glpat-|xox[abprs]-|sk-)[\w-]{16,}"),
    re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{12,}"),
    re.compile(r"()\beyJ[\w-]{8,500}\.[\w-]{8,}(?:\.[\w-]*)?"),
    re.compile(r"()-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", re.S),
)

MOST_IN_LINE = 4000  # characters of an error, because a column's name can be a megabyte long
MOST_IN_MARKDOWN = 300
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# C0, DEL and C1; direction marks, embeddings, overrides and isolates; Unicode's line ends; surrogates, which stand for
# bytes that are not UTF-8; the byte order mark.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
UNENCODED = re.compile("[\ud800-\udfff]")  # bytes of a name that are not text in the locale
MARKDOWN = re.compile(r"([\\`*_\[\]|~$#!])")
PLAIN_NAME = re.compile(r"[\w.:/@-][\w.:/@ -]*")
SETTING = re.compile(r"(?<!column )(?<!has )`([a-z_]+(?:\.[a-z_]+)?)`")
"""Pattern of a setting in a message. A name after the word `column` or `has` is not a setting, but a column of the
input."""
FLAGS: dict[str, str] = {}
"""Flag of each setting of this process's command, for example `--text-column` for the key `text_column`."""


def redacted(text: str) -> str:
    """Replace each credential in the text by `***`.

    These are credentials: users and passwords in URLs; all parameters of URLs, except harmless parameters; headers,
    settings and parameters outside URLs, if their names suggest a secret; tokens and keys in well-known formats; and
    the values of environment variables whose name suggests a secret, plain or quoted for a URL.
    """
    for secret in _environment_secrets():
        text = text.replace(secret, REMOVED)
    text = USER.sub(f"{REMOVED}@", text)
    text = URL.sub(lambda url: PARAMETER.sub(lambda found: _masked(found, not is_harmless(found[1])), url[0]), text)
    text = PARAMETER.sub(lambda found: _masked(found, _is_secret(found[1])), text)
    for shape in SHAPES:
        text = shape.sub(rf"\1{REMOVED}", text)
    return text


def has_credential(url: str) -> bool:
    """True if a URL holds a credential.

    These are credentials: a password, a parameter whose name suggests a secret, a token in a well-known format, and the
    value of an environment variable whose name suggests a secret. In an HTTP URL, a user without a password is also a
    credential, because it may be a token. In other URLs, a user without a password is not a credential, because it may
    be the name of a container (`abfs://container@account...`).
    """
    return (
        PASSWORD.search(url) is not None
        or any(_is_secret(found[1]) for found in PARAMETER.finditer(url))
        or any(shape.search(url) for shape in SHAPES)
        or any(secret in url for secret in _environment_secrets())
    )


def is_harmless(parameter: str) -> bool:
    """True if a URL parameter of this name never holds a credential."""
    return HARMLESS.fullmatch(unquote_plus(parameter)) is not None


def _masked(found: re.Match[str], secret: bool) -> str:
    return f"{found[1]}={REMOVED}" if secret else found[0]


def _is_secret(parameter: str) -> bool:
    name = unquote_plus(parameter)
    return TELLING.search(name) is not None or TELLING_WORD.search(name) is not None


def _environment_secrets() -> list[str]:
    """Return the values of environment variables whose names suggest secrets.

    Each value is returned unchanged, and also quoted for a URL. The longest comes first, because a value may be part of
    another value.
    """
    values = [value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)]
    secrets = {form for value in values if len(value) >= SHORTEST_SECRET for form in (value, quote(value, safe=""))}
    return sorted(secrets, key=len, reverse=True)


def with_flags(text: str) -> str:
    """Replace the names of settings, which messages show in backticks, by the flags of this command."""
    return SETTING.sub(lambda found: FLAGS.get(found[1], found[0]), text)


def visible(text: str, keep: str = "") -> str:
    """Escape all unsafe characters except those in `keep`, as Python does: `\\x1b`, `\\u202e`, `\\n`."""
    return UNSAFE.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Return the text as one line of bounded length, without credentials."""
    line = visible(" ".join(redacted(with_flags(text)).split()))
    end = MOST_IN_LINE // 4  # kept, because errors end with what to do
    return line if len(line) <= MOST_IN_LINE else f"{line[: MOST_IN_LINE - end]} … {line[-end:]}"


def describe(error: BaseException) -> str:
    """Return an error's message in one line, without credentials.

    If the message is empty, return the name of the error's class. The message of a KeyError is only the key, so it is
    preceded by the name of the class.
    """
    message, kind = redacted(" ".join(str(error).split())), type(error).__name__
    return f"{kind} {message}" if isinstance(error, KeyError) else message or kind


def say(*lines: str, file: TextIO | None = None) -> None:
    """Print lines after removing credentials, by default to standard output. Line breaks within a line are escaped."""
    for line in lines:
        print(visible(redacted(with_flags(line))), file=file or sys.stdout, flush=True)


def in_markdown(text: str) -> str:
    """Return the text for a line of Markdown: bounded in length, with markup and HTML escaped."""
    shown = text if len(text) <= MOST_IN_MARKDOWN else f"{text[:MOST_IN_MARKDOWN]}…"
    return MARKDOWN.sub(r"\\\1", escape(visible(shown.strip()), quote=False))


def name_in_markdown(name: str) -> str:
    """Return a name as Markdown code. A long or unusual name is escaped with `in_markdown` instead."""
    is_plain = len(name) <= MOST_IN_MARKDOWN and PLAIN_NAME.fullmatch(name)
    return f"`{name}`" if is_plain else in_markdown(name)


class LineFormatter(logging.Formatter):
    """Formatter of log records: one line without credentials, and below it the traceback, if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(redacted(with_flags(super().formatMessage(record))))

    def formatException(self, ei: Any) -> str:
        return visible(redacted(super().formatException(ei)), keep="\n")


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Log to standard error with LineFormatter, unless logging has been set up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(LOG_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
