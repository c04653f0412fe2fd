"""Raw records with the byte where each ends, from whole and from broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ijson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.data_files import DataError
from rsgrpo.readers import records
from rsgrpo.readers.findings import BadRecordError
from rsgrpo.readers.records import raw_records

TEXTS = st.text(alphabet='ab}{],[" \\é\n', max_size=12)
FIELDS = st.dictionaries(
    TEXTS, st.one_of(TEXTS, st.integers(-9, 9), st.lists(st.dictionaries(TEXTS, TEXTS), max_size=3))
)
# Many that begin alike, as a data set's do, what they hold too; and now and then one that does not.
ALIKE = st.fixed_dictionaries({"id": st.one_of(TEXTS, st.lists(st.fixed_dictionaries({"id": TEXTS}), max_size=3))})
RECORDS = st.one_of(
    st.lists(FIELDS, max_size=8),
    st.lists(
        st.one_of(ALIKE, ALIKE, ALIKE, st.builds(lambda one, more: one | more, ALIKE, FIELDS), FIELDS), max_size=8
    ),
)


def read(file: Path, prefix: str = "item", offset: int = 0) -> list[tuple[int, Any]]:
    return list(raw_records(file, prefix=prefix, offset=offset))


def test_the_parser_is_the_c_one():
    assert ijson.backend == "yajl2_c"


def test_each_record_comes_with_the_byte_behind_it(tmp_path: Path):
    file = tmp_path / "d.json"
    file.write_text('[{"a": 1}, {"a": 2}]')
    #                0123456789         19
    assert read(file) == [(9, {"a": 1}), (19, {"a": 2})]
    assert read(file, offset=9) == [(19, {"a": 2})]
    assert read(file, offset=19) == []


@given(values=RECORDS, indent=st.sampled_from([None, 2]), chunk=st.integers(1, 40), inside=st.booleans())
def test_any_list_reads_as_json_does_and_goes_on_from_any_record(
    values: list[Any], indent: int | None, chunk: int, inside: bool, tmp_path_factory: pytest.TempPathFactory
):
    file = tmp_path_factory.mktemp("list") / "d.json"
    content: Any = {"meta_data": {"x": [{"y": 1}]}, "data": values, "z": 0} if inside else values
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    prefix = "data.item" if inside else "item"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_CHUNK_BYTES", chunk)  # a chunk may end anywhere, inside a character too
        found = read(file, prefix)
        assert [value for _, value in found] == values
        for index, (end, _) in enumerate(found):
            assert read(file, prefix, end) == found[index + 1 :]
    data = file.read_bytes()
    starts = [0, *(end for end, _ in found)]
    for start, (end, value) in zip(starts[1:], found[1:], strict=False):
        assert json.loads(data[start:end].lstrip(b", \n")) == value


def test_records_that_are_no_objects_keep_their_neighbours_whole(tmp_path: Path):
    file = tmp_path / "d.json"
    file.write_text('["x", 3, {"a": 1}, null, {"a": 2}, [1]]')
    found = read(file)
    assert [value for _, value in found] == ["x", 3, {"a": 1}, None, {"a": 2}, [1]]
    # what is no object has no end of its own: whoever goes on there reads it again
    assert [end for end, _ in found] == [0, 0, 17, 17, 33, 33]
    assert [value for _, value in read(file, offset=17)] == [None, {"a": 2}, [1]]


@pytest.mark.parametrize(
    "text",
    [
        # what parts the first two is found within the third as well, and does not part it from the fourth
        '[{"id": 0}, {"id": 1}, {"id": [{"id": 2}, {"id": 3}]},{"id": 4}, {"id": 5}]',
        # a record that is none, one that begins otherwise, one that ends a list of such as it is itself
        '[{"id": 0}, {"id": 1}, 7, {"id": 2}, {"id": 3}]',
        '[{"id": 0}, {"id": 1}, {"x": 2}, {"id": 3}, {"id": 4}]',
        '[{"id": 0}, {"id": 1}, {"id": {"a": [{"id": 2}]}}, {"id": 3}]',
        '[{"id": "}, {\\"id\\": 1"}, {"id": 1}, {"id": 2}]',
    ],
)
@pytest.mark.parametrize("chunk", [7, 1 << 18])
def test_records_parted_otherwise_than_the_first_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, chunk: int
):
    monkeypatch.setattr(records, "_CHUNK_BYTES", chunk)
    file = tmp_path / "d.json"
    file.write_text(text)
    found = read(file)
    assert [value for _, value in found] == json.loads(text)
    ends = [end for end, value in found if isinstance(value, dict)]
    assert all(text[end - 1] == "}" for end in ends)
    for start, end, value in zip([0, *ends], ends, [one for _, one in found if isinstance(one, dict)], strict=False):
        assert json.loads(text[start:end].lstrip("[, 7")) == value
        assert [one for _, one in read(file, offset=end)] == json.loads("[" + text[end:].lstrip(", "))


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_list_that_breaks_off_says_where_the_last_whole_record_ends(tmp_path: Path, cut: int):
    file = tmp_path / "d.json"
    text = '[{"a": 1}, {"a": 2}]'
    file.write_text(text[:cut])
    *whole, (end, error) = read(file)
    # the records end at bytes 9 and 19; a list cut right behind one lacks its bracket all the same
    assert [value["a"] for _, value in whole] == [n for n, stop in ((1, 9), (2, 19)) if cut >= stop]
    assert end == max((0, *(stop for stop, _ in whole)))
    assert isinstance(error, BadRecordError)
    assert error.reason == "truncated JSON"
    assert f"breaks off at byte {cut}" in error.detail
    assert f"ends at byte {end} " in error.detail
    file.write_text(text)
    assert [value["a"] for _, value in read(file, offset=end)] == [1, 2][len(whole) :]


def test_what_is_no_json_is_told_from_what_breaks_off(tmp_path: Path):
    file = tmp_path / "d.json"
    file.write_bytes(b'[{"a": 1}, {"a": \xff"b"}, {"a": 3}]')
    (first, error) = read(file)
    assert first == (9, {"a": 1})
    assert isinstance(error[1], BadRecordError)
    assert error[1].reason == "not JSON"
    assert "behind byte 9" in error[1].detail


def test_lines_go_on_from_any_line_and_a_broken_one_is_one_record(tmp_path: Path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"a": 1}\n\n{"a": \n{"a": 3}\n{"a"')
    found = read(file)
    # bytes: 9 with its line break, one empty line, 6 broken, 9 good, 4 without a line break
    assert [end for end, _ in found] == [9, 17, 26, 30]
    errors = [(value.reason, value.detail) for _, value in found if isinstance(value, BadRecordError)]
    assert [reason for reason, _ in errors] == ["not JSON", "truncated JSON"]
    assert "bytes 10 to 17" in errors[0][1]
    assert read(file, offset=17)[0] == (26, {"a": 3})


def test_a_table_reads_by_row_number(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": list(range(2000))}), tmp_path / "d.parquet")
    found = read(tmp_path / "d.parquet")
    assert (len(found), found[1500]) == (2000, (1501, {"a": 1500}))
    assert read(tmp_path / "d.parquet", offset=1999) == [(2000, {"a": 1999})]


def test_another_kind_of_json_is_refused(tmp_path: Path):
    file = tmp_path / "d.json"
    file.write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"expected a JSON list \(\[\).*must be named \.jsonl"):
        read(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object"):
        read(file, "data.item")
    file.write_bytes(b"\xef\xbb\xbf [ ]")  # a byte order mark is no defect
    assert read(file) == []
