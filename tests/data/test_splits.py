"""Splits and configurations of a folder, compared with those that `datasets` finds in it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.files import Folder, locate
from pipeline.data.splits import configs_of, contents_of, select

WORDS = ("train", "training", "valid", "val", "dev", "test", "eval", "other", "a", "b1", "data", "_old", "sample")
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).flatmap(
    lambda words: st.sampled_from(["-", "_", ".", ""]).map(lambda apart: apart.join(words))
)
SHARDS = st.builds("data/{}-{:05}-of-00002.parquet".format, st.sampled_from(("train", "test", "x")), st.integers(0, 1))
PATHS = st.builds(
    lambda folders, name: "/".join([*folders, f"{name}.parquet"]), st.lists(NAMES, max_size=2), NAMES
).filter(lambda path: "/_" not in f"/{path}")


def folder_of(root: Path, files: Mapping[str, bytes], card: str = "") -> Folder:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    if card:
        (root / "README.md").write_text(card, encoding="utf-8")
    (found,) = locate(str(root)).entries
    assert isinstance(found, Folder)
    return found


def parquet(*paths: str) -> dict[str, bytes]:
    return dict.fromkeys(paths, b"PAR1")


def card(*configs: Mapping[str, object]) -> str:
    return f"---\n{yaml.safe_dump({'license': 'mit', 'configs': list(configs)})}---\n# A dataset\n"


def in_order(splits: Mapping[str, Sequence[str]]) -> list[tuple[str, list[str]]]:
    return [(split, [*paths]) for split, paths in splits.items()]


def by_datasets(root: Path, config: str | None = None) -> dict[str, list[str]]:
    """Return the files of each split that `load_dataset` would read, in order, each only once."""
    found = datasets.load_dataset_builder(str(root), config).config.data_files
    return {
        str(split): list(dict.fromkeys(str(Path(file).relative_to(root.resolve())) for file in files))
        for split, files in found.items()
    }


@settings(max_examples=80, deadline=None)
@given(st.sets(PATHS | SHARDS, min_size=1, max_size=6))
@example({"data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "test.parquet"})
@example({"train/0.parquet", "test/0.parquet", "0.parquet"})
@example({"my-train-file.parquet", "my_dev.parquet", "evaluation 1.parquet"})
@example({"latest.parquet", "contest/a.parquet"})
@example({"x.parquet/part-0.parquet", "train.parquet/part-0.parquet"})
def test_names_determine_the_splits_that_datasets_finds(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str]
) -> None:
    root = tmp_path_factory.mktemp("folder")
    whole = {path for path in paths if not any(other.startswith(f"{path}/") for other in paths)}
    folder = folder_of(root, parquet(*whole))
    assert in_order(contents_of(folder, configs_of(folder)["default"]).splits) == in_order(by_datasets(root))
    shutil.rmtree(root)


PATTERNS = st.sampled_from(["data/*", "**", "*.parquet", "./b/*.parquet", "data/*/*", "b/b.parquet", "data/[ab]*"])
DATA_FILES = (
    PATTERNS
    | st.lists(PATTERNS, min_size=1, max_size=2)
    | st.lists(
        st.builds(
            lambda split, path: {"split": split, "path": path},
            st.sampled_from(["train", "test", "more"]),
            PATTERNS | st.lists(PATTERNS, min_size=1, max_size=2),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda entry: str(entry["split"]),
    )
)


@settings(max_examples=60, deadline=None)
@given(DATA_FILES, st.sampled_from([None, ".", "data"]))
def test_a_card_determines_the_splits_that_datasets_finds(
    tmp_path_factory: pytest.TempPathFactory, declared: object, data_dir: str | None
) -> None:
    root = tmp_path_factory.mktemp("folder")
    files = parquet("a.parquet", "data/a.parquet", "data/b.parquet", "data/data/c/a.parquet", "b/b.parquet")
    files |= parquet("data/b/b.parquet", "data/data/a.parquet", "data/x/y.parquet")
    config = {"config_name": "c", "data_files": declared} | ({"data_dir": data_dir} if data_dir else {})
    folder = folder_of(root, files, card(config))
    assert in_order(contents_of(folder, configs_of(folder)["c"]).splits) == in_order(by_datasets(root))
    shutil.rmtree(root)


def test_a_folder_in_hidden_folders_is_read_as_datasets_reads_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / ".cache" / "_x", parquet("train.parquet", "test.parquet"))
    assert contents_of(folder, {}).splits == by_datasets(tmp_path / ".cache" / "_x")


FINEWEB = card(
    {"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*"}]},
    {"config_name": "sample-10BT", "data_files": [{"split": "train", "path": "sample/10BT/*"}]},
    {"config_name": "CC-2024", "data_files": [{"split": "train", "path": "data/CC-2024/*"}]},
)
FINEWEB_FILES = parquet("data/CC-2024/000.parquet", "data/CC-2025/000.parquet", "sample/10BT/000.parquet")


def test_each_file_of_several_configs_is_read_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, FINEWEB_FILES, FINEWEB)
    default = select(folder)
    assert [file.url for file in default.files] == [f"{tmp_path}/data/CC-202{year}/000.parquet" for year in (4, 5)]
    taking = "taking config default of default, sample-10BT, CC-2024; `config_name` names another"
    assert (default.choice, default.notes) == ("config default", [f"{tmp_path}: {taking}"])
    for name in ("sample-10BT", "CC-2024", "default"):
        read = [str(Path(file.url).relative_to(tmp_path)) for file in select(folder, None, name).files]
        assert {"train": read} == by_datasets(tmp_path, name)
    with pytest.raises(
        ValueError, match="has no config 10BT; `config_name` takes one of default, sample-10BT, CC-2024"
    ):
        select(folder, config_name="10BT")


@pytest.mark.parametrize(
    ("marks", "taken"),
    [
        ([{}], "a"),
        ([{}, {}], "has no default among its configs; name one with `config_name`: a, b"),
        ([{}, {"default": True}], "b"),
        ([{"default": True}, {"default": True}], "has several defaults among its configs; name one .*: a, b"),
    ],
)
def test_the_default_config_is_that_of_datasets(tmp_path: Path, marks: list[dict[str, bool]], taken: str) -> None:
    configs = [{"config_name": name, "data_files": f"{name}/*"} | mark for name, mark in zip("ab", marks, strict=False)]
    folder = folder_of(tmp_path, parquet("a/0.parquet", "b/0.parquet"), card(*configs))
    if len(taken) == 1:
        assert [file.url for file in select(folder).files] == [f"{tmp_path}/{taken}/0.parquet"]
        assert by_datasets(tmp_path) == {"train": [f"{taken}/0.parquet"]}
        return
    with pytest.raises(ValueError, match=taken):
        select(folder)
    with pytest.raises(ValueError):
        by_datasets(tmp_path)


def test_train_is_selected_from_several_splits_and_reported(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, parquet("test.parquet", "train-0.parquet", "train-1.parquet", "dev.parquet"))
    names = {None: ["train-0", "train-1"], "test": ["test"], "all": ["train-0", "train-1", "dev", "test"]}
    for split, expected in names.items():
        assert [file.name for file in select(folder, split).files] == [f"{name}.parquet" for name in expected]
    one, every = select(folder), select(folder, "all")
    assert (one.choice, every.choice) == ("split train", "split all")
    taking = "taking split train of train, validation, test; `split` names another, `split` all takes all"
    assert one.notes == [f"{tmp_path}: {taking}"]
    assert every.notes == [f"{tmp_path}: taking all splits: train, validation, test; `split` names one"]
    with pytest.raises(ValueError, match="has no split dev; `split` takes all or one of train, validation, test"):
        select(folder, "dev")


def test_a_single_split_is_not_reported_as_a_choice(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, parquet("test/0.parquet"))
    for split in (None, "test", "all"):
        part = select(folder, split)
        assert (len(part.files), part.choice, part.notes) == (1, "", [])
    with pytest.raises(ValueError, match="has no split train; `split` takes all or one of test"):
        select(folder, "train")


def test_several_splits_without_train_need_a_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, parquet("test.parquet", "val.parquet"))
    with pytest.raises(ValueError, match="has no split train; name one with `split`, or all: validation, test"):
        select(folder)


def test_a_file_in_two_splits_is_read_once_if_all_splits_are_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, parquet("train test.parquet", "test.parquet"))
    assert contents_of(folder, {}).splits == by_datasets(tmp_path)
    assert [file.name for file in select(folder, "all").files] == ["train test.parquet", "test.parquet"]


def test_files_in_no_split_are_reported(tmp_path: Path) -> None:
    part = select(folder_of(tmp_path, parquet("train.parquet", *(f"{name}.parquet" for name in "abcde"))))
    assert [file.name for file in part.files] == ["train.parquet"]
    (note,) = part.notes
    assert note.endswith("left out 5 files (in no split by their names): a.parquet, b.parquet, c.parquet and 2 more")


def test_a_declared_split_without_files_is_refused(tmp_path: Path) -> None:
    declared = [{"split": "train", "path": "data/*.parquet"}, {"split": "test", "path": "gone/*"}]
    folder = folder_of(tmp_path, parquet("data/0.parquet"), card({"config_name": "c", "data_files": declared}))
    assert len(select(folder).files) == 1
    with pytest.raises(ValueError, match=r"has no data in split test; see the data_files of its README\.md"):
        select(folder, "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\na: [\n---\n", "has no readable YAML at its top .*; fix it"),
        (card({"config_name": "c", "data_files": {"train": "*"}}), "has data_files that are neither"),
        (card({"config_name": "c", "data_files": 3}), "has data_files that are neither"),
        (card({"config_name": "c", "data_files": [{"split": "train", "path": 3}]}), "has data_files that are neither"),
        (card({"data_files": "*"}), "must list mappings, each with a config_name"),
        ("---\nconfigs: all\n---\n", "must list mappings, each with a config_name"),
        (card({"config_name": "c", "data_files": "../*"}), r"names files outside it, \.\./\*; name them with `input`"),
        (card({"config_name": "c", "data_files": "hf://datasets/a/b/*"}), "names files outside it, hf://datasets/a/b"),
    ],
)
def test_a_card_that_cannot_be_followed_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(folder_of(tmp_path, parquet("a.parquet"), text))


@pytest.mark.parametrize(
    "text", ["# A title", "---\nlicense: mit\n---\n", "---\nonly text\n---\n", "\r\n---\r\na: 1\r\n"]
)
def test_a_card_without_configs_is_ignored(tmp_path: Path, text: str) -> None:
    assert configs_of(folder_of(tmp_path, parquet("a.parquet"), text)) == {"default": {}}


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ("dataset_infos.json", "not data"),
        ("dataset_info.json", "not data"),
        ("_delta_log/0.json", "not data"),
        ("_ledger/exact/plan.json", "not data"),
        ("_temporary/0/part.parquet", "not data"),
        ("_old.parquet", "not data"),
        ("__pycache__/a.parquet", "not data"),
        ("logs/stats.json", "not Parquet, which holds the most bytes"),
        ("test.json", "not Parquet, which holds the most bytes"),
    ],
)
def test_files_that_are_not_data_are_left_out_and_reported(tmp_path: Path, beside: str, reason: str) -> None:
    part = select(folder_of(tmp_path, {beside: b"{}", "data/0.parquet": b"PAR1" * 9}))
    assert [file.name for file in part.files] == ["0.parquet"]
    assert part.notes == [f"{tmp_path}: left out 1 file ({reason}): {beside}"]


def test_the_format_with_the_most_bytes_is_read(tmp_path: Path) -> None:
    """Many pipelines write more files of statistics than of data, so the number of files must not decide the format."""
    logs = {f"logs/{task}.json": b"{}" for task in range(9)}
    lines = folder_of(tmp_path / "lines", {"a.jsonl": b"{}" * 50, "b.json": b"{}", "index.parquet": b"PAR1"})
    table = folder_of(tmp_path / "table", {"a.parquet": b"PAR1" * 50, **logs})
    assert [file.name for file in select(lines).files] == ["a.jsonl", "b.json"]
    assert [file.name for file in select(table).files] == ["a.parquet"]
    same = folder_of(tmp_path / "same", {"a.jsonl": b"{}{}", "b.parquet": b"PAR1"})
    assert [file.name for file in select(same).files] == ["b.parquet"]
    assert select(table).notes[0].endswith("logs/0.json, logs/1.json, logs/2.json and 6 more")


def test_a_card_may_name_a_folder_that_is_otherwise_left_out(tmp_path: Path) -> None:
    files = parquet("_data/0.parquet", "0.parquet")
    named = folder_of(tmp_path, files, card({"config_name": "c", "data_files": "_data/*"}))
    assert [file.url for file in select(named).files] == [f"{tmp_path}/_data/0.parquet"]


def test_matches_of_a_card_that_are_not_data_are_left_out_and_reported(tmp_path: Path) -> None:
    files = parquet("_x/0.parquet", "a/0.parquet", "a/_1.parquet", "elsewhere.parquet")
    part = select(folder_of(tmp_path, files, card({"config_name": "c", "data_files": "*/*.parquet"})))
    assert [file.url for file in part.files] == [f"{tmp_path}/a/0.parquet"]
    assert part.notes == [f"{tmp_path}: left out 2 files (not data): _x/0.parquet, a/_1.parquet"]
