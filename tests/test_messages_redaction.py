"""Credentials are found in URLs and removed from text."""

import os
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.messages import has_credential, redacted

SECRETS = st.text("abcXYZ019-._~", min_size=8, max_size=30).map("Q".__add__)  # no other text has a Q
WORDS = st.text("abc /:.,\n", max_size=20)
NAMES = st.sampled_from(
    ["token", "X-Amz-Signature", "sig", "AWSAccessKeyId", "client_secret", "Credential", "password"]
)


@settings(max_examples=100, deadline=None)
@given(SECRETS, SECRETS, NAMES, WORDS, WORDS)
def test_every_kind_of_credential_is_removed(secret: str, other: str, name: str, before: str, after: str) -> None:
    for shown in (
        f"{before} https://user:{secret}@host/path {after}",
        f"{before} https://{secret}@host {after}",
        f"{before} https://host/a?x=1&{name}={secret}&y=2 {after}",
        f"{before} https://host/a?{quote(name).replace('t', '%74')}={secret} {after}",
        f"{before} Authorization: Bearer {secret} {after}",
    ):
        assert secret not in redacted(shown)
        assert redacted(redacted(shown)) == redacted(shown)
    urls = f"https://a:{secret}@b/c?{name}={other} s3://k:{other}@b"
    assert redacted(urls) == f"https://***@b/c?{name}=*** s3://***@b"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(SECRETS, min_size=1, max_size=3),
    st.sampled_from(["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "A_CREDENTIAL_B", "api_key"]),
    st.lists(st.integers(0, 2) | st.text("abc/ ", max_size=9), max_size=8),
)
def test_values_of_telling_variables_are_removed(secrets: list[str], name: str, parts: list[int | str]) -> None:
    text = "".join(part if isinstance(part, str) else secrets[part % len(secrets)] for part in parts)
    with pytest.MonkeyPatch.context() as patch:
        for variable in os.environ:
            patch.delenv(variable)
        for index, secret in enumerate(secrets):
            patch.setenv(name if index == 0 else f"{index}_{name}", secret)
        shown = redacted(text)
    assert not any(secret in shown for secret in secrets)


def test_a_value_that_is_quoted_for_a_url_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a/b+c=d&e")
    assert redacted("https://host/a%2Fb%2Bc%3Dd%26e/x") == "https://host/***/x"


@pytest.mark.parametrize("value", ["short", ""])
def test_a_short_value_stays(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOME_TOKEN", value)
    assert redacted("a short text") == "a short text"


@pytest.mark.parametrize(
    "text",
    [
        "hf://datasets/user/name@main/data/*.parquet",
        "https://host:80/a@b?page=3&size=10",
        "hf_hub_download failed",
        "the token 5 is no key=value",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redacted(text) == text
    assert not has_credential(text)


def test_hugging_face_tokens_are_removed() -> None:
    assert redacted("token hf_abcdefghijKLMNOP1234, denied") == "token ***, denied"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:word@host/a", True),
        ("https://word@host/a", True),
        ("s3://key:word@bucket/a", True),
        ("https://host/a?X-Amz-Signature=1", True),
        ("https://host/a?to%6ben=1", True),
        ("https://host/a?page=1&sig=2", True),
        ("https://host/a#access_token=2", True),
        ("abfs://container@account.dfs.core.windows.net/a", False),
        ("hf://datasets/user/name@0123/a", False),
        ("https://host/token/a.jsonl?page=1", False),
    ],
)
def test_credentials_in_urls_are_found(url: str, expected: bool) -> None:
    assert has_credential(url) == expected


SECRET = "s3cr3tCANARYvalue99"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:ab/{SECRET}@bucket/x",
        f"https://u:ab/{SECRET}@host/x",
        f"https://u:ab#{SECRET}@host/x",
        f"webdav+https://{SECRET}@host/x",
        f"hf://u:{SECRET}@datasets/a/b",
        f"https://host/x;sig={SECRET}",
        f"https://host/x?s%69g={SECRET}",
        f"https://host/x#token={SECRET}",
        f"https://host/hf_{SECRET}/x",
        *(f"https://host/x?{name}={SECRET}" for name in ("auth", "pwd", "pass", "jwt", "code", "sid", "se", "Policy")),
    ],
)
def test_a_url_with_a_credential_is_found_and_shown_without_it(url: str) -> None:
    assert has_credential(url) and SECRET not in redacted(f"cannot reach {url}: boom")


def test_a_parameter_that_is_not_harmless_is_not_shown() -> None:
    assert redacted("at https://host/x?upload_id=5&page=2, x=1") == "at https://host/x?upload_id=***&page=2, x=1"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Basic {SECRET}",
        f"authorization: {SECRET}",
        f"{{'Authorization': 'token {SECRET}'}}",
        f"x-api-key: {SECRET}",
        f"Cookie: session={SECRET}; other={SECRET}",
        f"AccountName=a;AccountKey={SECRET};EndpointSuffix=x",
        f'{{"token": "{SECRET}"}}',
        f"{{'secret_access_key': '{SECRET}'}}",
        f"S3FileSystem(key='AKIA', secret='{SECRET}')",
        f"password={SECRET}",
        f"ghp_{SECRET}{SECRET}",
        f"hf_oauth_{SECRET}",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
    ],
)
def test_headers_settings_and_keys_of_known_shapes_are_removed(text: str) -> None:
    shown = redacted(f"said {text}")
    assert "***" in shown and SECRET not in shown and text not in shown


@pytest.mark.parametrize("name", ["MY_PASSWD", "DB_PASS", "GH_PAT", "API_KEY", "AWS_ACCESS_KEY_ID", "CONN_STR", "KEYS"])
def test_variables_that_hold_a_secret_are_recognised_by_their_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET)
    assert redacted(f"said {SECRET}") == "said ***" and has_credential(f"https://host/{SECRET}")


@pytest.mark.parametrize(
    "text",
    [
        "--tokenizer=none, tokens=5, start_token 7, key=value, keys: a, b",
        "token: 5 of 7; basic words; the cookbook says so",
        "holds another run's dataset (method exact there, second-order now)",
        "https://host:80/a@b, s3://bucket/a:b/c@d, file:///a/b?c",
    ],
)
def test_ordinary_text_stays(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PWD", "/a/b")
    assert redacted(text) == text


@pytest.mark.parametrize(
    "part", ["c", "-a", "://a:", "eyJ-", "x-", "a=", "?a=b", "https://", "hf_a", "Bearer ", "-----BEGIN "]
)
def test_a_long_name_is_searched_in_a_moment(part: str) -> None:
    begun = time.process_time()
    redacted(part * (200_000 // len(part)))
    assert time.process_time() - begun < 10
