"""The address of the Ray cluster to use."""

import pytest

from pipeline.engine.cluster import LOCAL, ray_address


@pytest.mark.parametrize(
    ("given", "in_environment", "expected"),
    [
        (None, None, LOCAL),
        (None, "", LOCAL),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        (None, "ray://head:10001", "ray://head:10001"),
        (None, "http://127.0.0.1:8265", LOCAL),
        (None, "https://ray.example.org", LOCAL),
        ("auto", "http://127.0.0.1:8265", "auto"),
        ("10.0.0.2:6379", "10.0.0.1:6379", "10.0.0.2:6379"),
    ],
)
def test_a_dashboard_in_the_environment_is_not_a_cluster(
    given: str | None, in_environment: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if in_environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", in_environment)
    assert ray_address(given) == expected
