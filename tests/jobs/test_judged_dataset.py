"""Test of the recipe annotate_fineweb_edu_smollm2.yaml, which labels FineWeb-Edu for comparison with other labels.

One command runs the recipe with the test Hub, and publishes the labels and a finished card.
"""

from pathlib import Path

import pyarrow.parquet as pq
import yaml

from tests.conftest import RunCommand
from tests.hub import Hub
from tests.readme.workspace import edu_file, write_language_model

RECIPE = Path(__file__).parents[2] / "jobs" / "annotate_fineweb_edu_smollm2.yaml"
SOURCE_CARD = b"---\nlicense: odc-by\nlanguage:\n- en\n---\n# FineWeb-Edu\n"


def test_one_command_publishes_the_labels_and_a_finished_card(
    run_command: RunCommand, hub: Hub, tmp_path: Path
) -> None:
    source = {"README.md": SOURCE_CARD, "sample/10BT/000_00000.parquet": edu_file(tmp_path)}
    hub.add("HuggingFaceFW/fineweb-edu", source)
    write_language_model(tmp_path / "model")
    own = ("--output", "hf://datasets/user/judged", "--estimator", tmp_path / "model", "--staging", tmp_path / "staged")
    assert run_command("pipeline.annotate", "--config", RECIPE, *own, "--workers", 0) == 0
    files = hub.files("user/judged")
    (shard,) = (content for path, content in files.items() if path.startswith("data/smollm2-135m/"))
    (tmp_path / "shard.parquet").write_bytes(shard)
    rows = pq.read_table(tmp_path / "shard.parquet")
    assert {"id", "dump", "url", "language_score", "score", "entropy", "expected_entropy", "rank"} <= {
        *rows.column_names
    }
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "odc-by" and front["language"] == ["en"]
    assert [config["config_name"] for config in front["configs"]] == ["smollm2-135m"]
    for said in (
        "HuggingFaceFW/fineweb-edu",
        "bits per byte",
        "| `rank` |",
        'load_dataset("user/judged", "smollm2-135m"',
    ):
        assert said in card
    assert "still being written" not in card
