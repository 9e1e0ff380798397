"""The cluster of docker/compose.yaml, checked by Compose's published schema and by Ray's own command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkers import ROOT, check
from tests.docker.dockerfile import instructions
from tests.jobs.commands import annotations, in_comments, ray_start_flags

COMPOSE = ROOT / "docker" / "compose.yaml"
SCHEMA = ("--builtin-schema", "vendor.compose-spec")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")))


def test_the_schema_accepts_it_and_refuses_a_misspelt_key(tmp_path: Path) -> None:
    assert check("check-jsonschema", *SCHEMA, COMPOSE) is None
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text(COMPOSE.read_text(encoding="utf-8").replace("depends_on", "depend_on"), encoding="utf-8")
    assert "depend_on" in (check("check-jsonschema", *SCHEMA, misspelt) or "")


def test_a_head_and_two_workers_share_one_image_and_one_volume(compose: dict[str, Any]) -> None:
    head, worker = compose["services"]["head"], compose["services"]["worker"]
    assert worker["deploy"]["replicas"] == 2 and set(compose["services"]) == {"head", "worker"}
    assert head["image"] == worker["image"] and head["build"] == worker["build"]
    assert (COMPOSE.parent / head["build"]["context"] / head["build"]["dockerfile"]).is_file()
    assert head["volumes"] == worker["volumes"] == ["data:/data"] and set(compose["volumes"]) == {"data"}


def test_the_dashboard_is_on_loopback_alone_and_asks_for_a_token(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:8265:8265"]
    for service in compose["services"].values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")


def test_services_may_do_nothing_but_compute(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] and "privileged" not in service and "network_mode" not in service
        writable = {line.split(":")[0]: line for line in service["tmpfs"]}
        assert set(writable) == {"/tmp", "/home/ray"}, "Ray's folder, and HOME"
        assert all("size=" in line for line in writable.values())


def test_workers_wait_for_the_head_that_the_image_can_tell_healthy(compose: dict[str, Any]) -> None:
    assert compose["services"]["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}
    assert "local_raylet_healthz" in instructions("HEALTHCHECK")[-1].rest


def test_ray_knows_every_flag_and_the_head_labels_nothing(compose: dict[str, Any]) -> None:
    head, worker = (ray_start_flags(compose["services"][name]["command"]) for name in ("head", "worker"))
    assert head["head"] and head["block"] and head["num_cpus"] == 0
    assert worker["address"] == "head:6379" and worker["block"] and not worker["head"]


def test_the_command_that_it_names_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    (config,) = annotations(in_comments(COMPOSE), monkeypatch)
    assert config.output == "/data/annotated" and config.gpus_per_worker == 0
