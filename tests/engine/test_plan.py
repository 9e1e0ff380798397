"""The plan: rows of files that form a shard, and the precision that suits a device."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.documents import Column, FileInfo
from pipeline.data.files import File, find_files
from pipeline.engine.plan import Source, default_rows_per_unit, fast_dtype, inspect, plan_units
from schemas.annotations import Device

TEXT = Column()


def text_file(file: Path, texts: list[str], **columns: list[int]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), **columns}), file)
    return file


def source_of(groups: list[list[int]]) -> Source:
    """Return a source with one file per list. A list has the number of rows of each row group in the file."""
    schema = pa.schema([("text", pa.string())])
    files = tuple(File(f"{index}.parquet", 1, "1") for index in range(len(groups)))
    infos = tuple(FileInfo(sum(rows), tuple(rows), schema, "digest") for rows in groups)
    return Source(files, infos, schema, "digest")


def look(files: Sequence[Path], column: Column = TEXT, passed: Sequence[str] | None = None) -> Source:
    return inspect(find_files([str(file) for file in files]), column, (), passed)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=5), max_size=4), st.integers(1, 12), st.none() | st.integers(0, 200)
)
def test_units_cover_rows_in_order_up_to_the_limit(
    groups: list[list[int]], rows_per_unit: int, limit: int | None
) -> None:
    units = plan_units(source_of(groups), rows_per_unit=rows_per_unit, limit=limit)
    planned = [(unit.file.url, row) for unit in units for row in range(unit.start, unit.stop)]
    expected = [(f"{file}.parquet", row) for file, rows in enumerate(groups) for row in range(sum(rows))]
    assert planned == expected[:limit]
    assert [unit.index for unit in units] == list(range(len(units)))
    assert all(0 < unit.stop - unit.start <= rows_per_unit for unit in units)


def test_units_do_not_cross_files() -> None:
    units = plan_units(source_of([[5], [3]]), rows_per_unit=4, limit=7)
    places = [(unit.file.url, unit.start, unit.stop) for unit in units]
    assert places == [("0.parquet", 0, 4), ("0.parquet", 4, 5), ("1.parquet", 0, 2)]


def test_units_consist_of_whole_row_groups_if_these_are_small() -> None:
    units = plan_units(source_of([[3, 3, 3, 9, 1, 1]]), rows_per_unit=7, limit=None)
    assert [(unit.start, unit.stop) for unit in units] == [(0, 6), (6, 9), (9, 16), (16, 20)]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_units_are_neither_tiny_nor_huge(rows: int) -> None:
    size = default_rows_per_unit(rows)
    assert 8 <= size <= 16384
    assert size in (8, 16384) or (size - 1) * 16 < rows <= size * 16


@pytest.mark.parametrize(("rows", "size"), [(0, 8), (128, 8), (129, 9), (1600, 100), (16384 * 16 + 1, 16384)])
def test_a_sixteenth_of_the_rows_is_the_default(rows: int, size: int) -> None:
    assert default_rows_per_unit(rows) == size


def test_inspection_counts_rows_and_keeps_the_order(tmp_path: Path) -> None:
    files = [text_file(tmp_path / name, ["x"] * rows) for name, rows in (("b.parquet", 3), ("a.parquet", 0))]
    source = look(files)
    assert [file.url for file in source.files] == [str(file) for file in files]
    assert [info.rows for info in source.infos] == [3, 0] and source.rows == 3 and source.schema.names == ["text"]


def test_files_with_other_columns_are_refused(tmp_path: Path) -> None:
    files = [text_file(tmp_path / "a.parquet", ["x"]), text_file(tmp_path / "b.parquet", ["x"], more=[1])]
    with pytest.raises(ValueError, match=r"a\.parquet has no column `more`, which .*b\.parquet has"):
        look(files)
    assert look(files, passed=[]).schema == pa.schema([("text", pa.string())])


def test_schema_metadata_is_no_difference(tmp_path: Path) -> None:
    first, second = (text_file(tmp_path / name, ["x"]) for name in ("a.parquet", "b.parquet"))
    pq.write_table(pq.read_table(second).replace_schema_metadata({"pandas": "{}"}), second)
    assert look([first, second]).rows == 2


def test_a_file_without_the_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no column `input_ids`"):
        look([text_file(tmp_path / "a.parquet", ["x"])], Column("input_ids", tokenized=True))


def test_the_digest_is_that_of_the_files_and_not_of_their_folder(tmp_path: Path) -> None:
    here, there = (text_file(tmp_path / folder / "a.parquet", ["x", "y"]) for folder in ("here", "there"))
    assert look([here]).sha256 == look([there]).sha256


@pytest.mark.parametrize("texts", [["x", "z"], ["x", "y", "y"], ["x"], []])
def test_the_digest_changes_with_a_file(tmp_path: Path, texts: list[str]) -> None:
    files = [text_file(tmp_path / name, ["x", "y"]) for name in ("a.parquet", "b.parquet")]
    before = look(files).sha256
    text_file(files[1], texts)
    assert look(files).sha256 != before


def test_the_digest_changes_with_the_order_and_the_names_of_files(tmp_path: Path) -> None:
    first, second, third = (text_file(tmp_path / f"{name}.parquet", ["x"]) for name in "abc")
    lists = ([first, second], [second, first], [first, third], [first])
    assert len({look(files).sha256 for files in lists}) == 4


def test_a_footer_with_any_number_of_rows_makes_no_endless_plan() -> None:
    source = source_of([[2**60]])
    with (
        pytest.raises(ValueError, match=r"takes the input beyond 1,000 shards; give more rows to each with `rows_per"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("pipeline.engine.plan.MOST_UNITS", 1000)
        plan_units(source, rows_per_unit=8, limit=None)
    assert len(plan_units(source, rows_per_unit=8, limit=80)) == 10


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [
        ("cpu", "fpu avx512f avx512_bf16", "bfloat16"),
        ("cpu", "amx_tile amx_bf16 amx_int8", "bfloat16"),
        ("cpu", "fpu avx2 avx512f avx512_vnni", "float32"),
        ("cpu", "", "float32"),
        ("cuda", "fpu avx2", "bfloat16"),
    ],
)
def test_bfloat16_is_for_devices_with_its_instructions(
    tmp_path: Path, device: Device, flags: str, expected: str
) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(
        f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\n\nprocessor\t: 1\n", encoding="utf-8"
    )
    assert fast_dtype(device, cpu_info) == expected


def test_a_system_that_does_not_list_its_cpus_features_gets_float32(tmp_path: Path) -> None:
    assert fast_dtype("cpu", tmp_path / "missing") == "float32"
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n", encoding="utf-8")
    assert fast_dtype("cpu", tmp_path / "arm") == "float32"
