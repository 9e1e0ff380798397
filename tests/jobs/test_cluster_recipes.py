"""Recipes of clusters: manifests match published schemas, commands parse, and none holds a credential."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.autoscaler
import yaml

from tests.checkers import ROOT, check
from tests.docker.dockerfile import instructions
from tests.jobs.commands import annotations, in_comments, ray_start_flags

JOBS = ROOT / "jobs"
MANIFESTS = sorted(JOBS.glob("kuberay_*.yaml"))
LAUNCHER = JOBS / "aws_spot_cluster.yaml"
CLUSTERS = [*MANIFESTS, LAUNCHER, ROOT / "docker" / "compose.yaml"]
RECIPES = [*sorted(JOBS.glob("annotate_*.yaml")), *CLUSTERS]
KUBERAY = ("--schemafile", Path(__file__).parent / "kuberay.schema.yaml")
RAY_LAUNCHER = ("--schemafile", Path(ray.autoscaler.__file__).parent / "ray-schema.json")


def read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(manifest["spec"].get("rayClusterSpec", manifest["spec"]))


def groups_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = cluster_of(manifest)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a parsed YAML document, at any depth."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


def test_recipes_are_a_job_a_cluster_and_a_launcher() -> None:
    assert [read(manifest)["kind"] for manifest in MANIFESTS] == ["RayCluster", "RayJob"]
    assert LAUNCHER.is_file()


def test_manifests_match_kuberays_schema(tmp_path: Path) -> None:
    assert check("check-jsonschema", *KUBERAY, *MANIFESTS) is None
    spoiled: list[Path] = []
    for right, wrong in (("minReplicas", "minReplica"), ('num-cpus: "0"', "num-cpus: 0"), ("mode: token", "mode: yes")):
        for manifest in MANIFESTS:
            assert right in manifest.read_text(encoding="utf-8")
            spoiled.append(tmp_path / f"{len(spoiled)}-{manifest.name}")
            spoiled[-1].write_text(manifest.read_text(encoding="utf-8").replace(right, wrong), encoding="utf-8")
    objections = check("check-jsonschema", *KUBERAY, *spoiled) or ""
    assert all(str(file) in objections for file in spoiled)


def test_pods_match_kubernetes_schema(tmp_path: Path) -> None:
    pods: list[Path] = []
    for group in (group for manifest in MANIFESTS for group in groups_of(read(manifest))):
        pods.append(tmp_path / f"{len(pods)}.yaml")
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]}
        pods[-1].write_text(json.dumps(pod), encoding="utf-8")
    assert len(pods) == 4 and check("kubernetes-validate", "--strict", "--quiet", *pods) is None
    pods[0].write_text(pods[0].read_text(encoding="utf-8").replace("secretKeyRef", "secretKeyref"), encoding="utf-8")
    assert "secretKeyref" in (check("kubernetes-validate", "--strict", "--quiet", *pods) or "")


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_every_container_of_ray_has_the_token_and_the_same_disk(manifest: Path) -> None:
    for group in groups_of(read(manifest)):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        token = {one["name"]: one for one in container["env"]}["HF_TOKEN"]
        assert token["valueFrom"] == {"secretKeyRef": {"name": "hugging-face", "key": "token"}}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"data": "/data", "temporary": "/tmp", "home": "/home/ray"}
        assert [volume["name"] for volume in pod["volumes"]] == list(mounts)
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])
        assert str(pod["securityContext"]["runAsUser"]) == instructions("USER")[-1].rest


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_containers_may_only_compute_and_ray_asks_for_its_token(manifest: Path) -> None:
    cluster = cluster_of(read(manifest))
    assert cluster["authOptions"] == {"mode": "token"}, "KubeRay makes a Secret of it, which all nodes get"
    least = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert cluster["autoscalerOptions"]["securityContext"] == least
    for group in groups_of(read(manifest)):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["containers"][0]["securityContext"] == {**least, "readOnlyRootFilesystem": True}
        assert "groupName" not in group or pod["automountServiceAccountToken"] is False, "the autoscaler needs it alone"


def rule_for(name: str) -> str:
    """Return the comment at the beginning of the launcher's recipe, and fail if `name` is not in the comment."""
    comment = LAUNCHER.read_text(encoding="utf-8").partition("\ncluster_name")[0]
    assert name in comment
    return comment


def test_the_launchers_nodes_are_closed_and_have_only_the_rights_they_need() -> None:
    """By default, Ray opens port 22 to the internet and gives the head node all rights over EC2 and S3."""
    for name, kind in read(LAUNCHER)["available_node_types"].items():
        node = kind["node_config"]
        assert node["SecurityGroupIds"] == ["sg-of-yours"], "else Ray makes one that is open"
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert ("IamInstanceProfile" in node) == (name == "head"), "workers have no role, the head's is made by hand"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    comment = rule_for("authorize-security-group-ingress")
    assert comment.count("authorize-security-group-ingress") == 2
    assert "--protocol all --source-group $group" in comment and "--port 22" in comment and "0.0.0.0" not in comment


def test_the_launchers_rays_ask_for_the_token_of_all_nodes() -> None:
    recipe = read(LAUNCHER)
    options = recipe["docker"]["run_options"]
    assert {"--env=RAY_AUTH_MODE=token", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(options)
    assert recipe["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert recipe["setup_commands"] == ["chmod 600 ~/.ray/auth_token"]
    head, worker = (recipe[f"{node}_start_ray_commands"][-1] for node in ("head", "worker"))
    flags = ray_start_flags(head.removeprefix("ulimit -n 65536; "))
    assert flags["head"] and flags["dashboard_host"] == "127.0.0.1" and flags["autoscaling_config"]
    assert ray_start_flags(worker.removeprefix("ulimit -n 65536; "))["address"] == "$RAY_HEAD_IP:6379"
    assert "umask 077; openssl rand -hex 32 > ~/.ray/auth_token" in rule_for("auth_token")


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_the_ray_of_a_manifest_is_the_installed_one_and_accepts_its_flags(manifest: Path) -> None:
    assert cluster_of(read(manifest))["rayVersion"] == ray.__version__
    for group in groups_of(read(manifest)):
        flags = " ".join(f"--{name}={value}" for name, value in group["rayStartParams"].items())
        ray_start_flags(f"ray start --address=head:6379 {flags}")


def test_the_launcher_matches_rays_schema(tmp_path: Path) -> None:
    assert check("check-jsonschema", *RAY_LAUNCHER, LAUNCHER) is None
    misspelt = tmp_path / "cluster.yaml"
    misspelt.write_text(
        LAUNCHER.read_text(encoding="utf-8").replace("max_workers", "maximum_workers"), encoding="utf-8"
    )
    assert "maximum_workers" in (check("check-jsonschema", *RAY_LAUNCHER, misspelt) or "")


def test_the_launchers_workers_are_spot_instances_and_its_head_is_not() -> None:
    kinds, head = (read(LAUNCHER)[name] for name in ("available_node_types", "head_node_type"))
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == set(kinds) - {head} and kinds[head]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_commands_in_a_recipe_are_understood(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = in_comments(recipe)
    assert commands, "a recipe begins with the command that uses it"
    entrypoint = read(recipe).get("spec", {}).get("entrypoint")
    configs = annotations([*commands, *([entrypoint] if entrypoint else [])], monkeypatch)
    assert configs or any("kubectl apply" in command for command in commands)
    for config in configs:
        assert config.input and config.output


def test_a_ray_started_by_hand_and_its_jobs_have_a_token() -> None:
    """A recipe that starts Ray by hand sets a token first.

    Otherwise, the cluster uses a token that another Ray left in ~/.ray, and `ray job submit` does not use this token.
    """
    by_hand = [recipe for recipe in RECIPES if "#   ray start --head" in recipe.read_text(encoding="utf-8")]
    assert len(by_hand) == 2
    for recipe in by_hand:
        before = recipe.read_text(encoding="utf-8").partition("#   ray start")[0]
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(openssl rand -hex 32)" in before


@pytest.mark.parametrize("recipe", [*MANIFESTS, LAUNCHER], ids=lambda path: path.stem)
def test_a_cluster_without_a_shared_disk_writes_to_the_hub(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entrypoint = read(recipe).get("spec", {}).get("entrypoint")
    for config in annotations([entrypoint] if entrypoint else in_comments(recipe), monkeypatch):
        assert config.repository is not None and config.private and config.gpus_per_worker == 1
        assert config.estimator == ("USER/second-order",), "a checkpoint that every node can fetch"


@pytest.mark.parametrize("recipe", CLUSTERS, ids=lambda path: path.stem)
def test_images_are_this_projects_own_at_its_version(recipe: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    images = {node["image"] for node in nodes(read(recipe)) if "image" in node}
    assert images
    for image in images:
        assert re.fullmatch(
            rf"(registry\.example\.com/)?token-entropy:{re.escape(version)}-(cpu|cu130|cu130-ssh)", image
        )


@pytest.mark.parametrize("recipe", sorted({*JOBS.glob("*.yaml"), *CLUSTERS}), ids=lambda path: path.stem)
def test_no_recipe_holds_a_credential(recipe: Path) -> None:
    assert not re.search(
        r"\bhf_[A-Za-z0-9]{10}|\bAKIA[A-Z0-9]{10}|BEGIN [A-Z ]*PRIVATE KEY", recipe.read_text(encoding="utf-8")
    )
    secret = re.compile(r"(TOKEN|SECRET|PASSWORD|KEY)$")
    for node in nodes(read(recipe)):
        if secret.search(str(node.get("name", ""))):
            assert "value" not in node, node["name"]
        for name, value in node.items():
            assert not secret.search(name) or str(value).startswith("${"), name
