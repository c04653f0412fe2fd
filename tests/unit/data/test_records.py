"""Raw records with the byte where each ends, from whole and from broken files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import ijson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsgrpo.data.file_bytes import DataError, open_utf8
from rsgrpo.data.readers import ReaderOptions, alike, json_stream, read_samples
from rsgrpo.data.readers.findings import BadRecordError
from rsgrpo.data.readers.records import raw_records
from rsgrpo.io.json_values import decode_json, replace_surrogates

TEXTS = st.text(alphabet='ab}{],[" \\é\n', max_size=12)
FIELDS = st.dictionaries(
    TEXTS, st.one_of(TEXTS, st.integers(-9, 9), st.lists(st.dictionaries(TEXTS, TEXTS), max_size=3))
)
# Many that begin alike, as a data set's do, what they hold too; and now and then one that does not.
ALIKE = st.fixed_dictionaries({"id": st.one_of(TEXTS, st.lists(st.fixed_dictionaries({"id": TEXTS}), max_size=3))})
RECORDS = st.one_of(
    st.lists(FIELDS, max_size=8),
    st.lists(
        st.one_of(ALIKE, ALIKE, ALIKE, st.builds(lambda record, fields: record | fields, ALIKE, FIELDS), FIELDS),
        max_size=8,
    ),
)


def read(file: Path, prefix: str = "item", offset: int = 0) -> list[tuple[int, Any]]:
    return [(record.end, record.value) for record in raw_records(file, prefix=prefix, offset=offset)]


def test_ijson_uses_its_c_parser():
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
        patch.setattr(json_stream, "_CHUNK_BYTES", chunk)
        patch.setattr(alike, "_CHUNK_BYTES", chunk)  # a chunk may end anywhere, inside a character too
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
    assert [end for end, _ in found] == [4, 7, 17, 23, 33, 38]
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
    monkeypatch.setattr(alike, "_CHUNK_BYTES", chunk)
    file = tmp_path / "d.json"
    file.write_text(text)
    found = read(file)
    assert [value for _, value in found] == json.loads(text)
    ends = [end for end, value in found if isinstance(value, dict)]
    assert all(text[end - 1] == "}" for end in ends)
    for start, end, value in zip(
        [0, *ends], ends, [record for _, record in found if isinstance(record, dict)], strict=False
    ):
        assert json.loads(text[start:end].lstrip("[, 7")) == value
        assert [record for _, record in read(file, offset=end)] == json.loads("[" + text[end:].lstrip(", "))


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


def test_behind_a_broken_record_the_next_one_is_read(tmp_path: Path):
    file = tmp_path / "d.json"
    text = b'[{"a": 1}, {"a": \xff"b"}, {"a": 3}]'
    file.write_bytes(text)
    first, broken, last = read(file)
    assert (first, last) == ((9, {"a": 1}), (32, {"a": 3}))
    assert isinstance(broken[1], BadRecordError)
    assert (broken[1].reason, broken[1].num_records) == ("not JSON", 1)
    # the broken record has bytes 11 to 21, a comma and a space follow
    assert "13 bytes cannot be read" in broken[1].detail
    assert "goes on at byte 24" in broken[1].detail


ROW = '{"id": %d, "score": %s, "talk": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}'


@pytest.mark.parametrize(
    "odd",
    [
        "x",
        "'a'",
        "[1, 2",
        '"open',
        '{"a": 1',
        "1}",
        "undefined",
        "0x1f",
        '"\\q"',
        "9" * 5000,
        "[" * 3000,
        "// no",
        "01",
    ],
)
@pytest.mark.parametrize("at", [0, 3, 39])
def test_one_broken_record_costs_one_record(tmp_path: Path, odd: str, at: int):
    rows = [ROW % (n, odd if n == at else "1.0") for n in range(40)]
    file = tmp_path / "d.json"
    file.write_text("[" + ",\n".join(rows) + "]")
    found = list(raw_records(file, prefix="item"))
    good = [record.value["id"] for record in found if isinstance(record.value, dict)]
    bad = [record.value for record in found if isinstance(record.value, BadRecordError)]
    lost = sum(error.num_records for error in bad)
    if odd == "1}":  # a whole record with something behind it: no one can know that it was none
        assert good == list(range(40))
        return
    # never a part of a record taken for a record, never a record twice
    assert good == [n for n in range(40) if n != at][: len(good)]
    if at or odd not in ("[1, 2", '"open', '{"a": 1', "[" * 3000):
        assert len(good) == 39
    else:  # brackets that do not match, and no record before that tells how one looks
        assert not good
        assert lost == 40


def test_a_list_that_cannot_be_read_on_says_how_much_is_lost(tmp_path: Path):
    rows = [ROW % (n, "1.0") for n in range(1000)]
    file = tmp_path / "d.json"
    file.write_text("[" + ",\n".join(rows[:3]) + ",\n" + "".join(rows[3:]).replace("{", "<").replace("[", "<") + "]")
    *good, rest = list(raw_records(file, prefix="item"))
    assert [record.value for record in good] == [json.loads(row) for row in rows[:3]]
    assert isinstance(rest.value, BadRecordError)
    size = file.stat().st_size
    assert f"3 records read, the remaining {size - rest.start:,} bytes of {size:,} (99.7 %" in rest.value.detail
    assert 900 < rest.value.num_records < 1100


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["\ud83d", "x\udc00y", "\ud83d\ude00", "\x00\x1f", "\u2028"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def like_json(text: str) -> Any:
    """What json reads, halves of surrogate pairs replaced."""
    return replace_surrogates(json.loads(text))[0]


@given(
    values=st.lists(st.dictionaries(st.sampled_from(["id", "x", "\udc00", "é"]), ANY, max_size=3), max_size=6),
    chunk=st.integers(1, 40),
    is_ascii=st.booleans(),
    kind=st.sampled_from(["json", "jsonl", "utf-16"]),
)
def test_whatever_json_writes_is_read_as_json_reads_it(
    values: list[Any], chunk: int, is_ascii: bool, kind: str, tmp_path_factory: pytest.TempPathFactory
):
    file = tmp_path_factory.mktemp("any") / ("d.jsonl" if kind == "jsonl" else "d.json")
    texts = [json.dumps(value, ensure_ascii=is_ascii) for value in values]
    text = "\n".join(texts) if kind == "jsonl" else f"[{', '.join(texts)}]"
    file.write_bytes(text.encode("utf-16" if kind == "utf-16" else "utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alike, "_CHUNK_BYTES", chunk)
        patch.setattr(json_stream, "_CHUNK_BYTES", chunk)
        found = list(raw_records(file, prefix="item"))
    with open_utf8(file) as stream:
        data = stream.read()
    # compared as text, as NaN is not equal to itself
    assert [repr(record.value) for record in found] == [repr(like_json(record)) for record in texts]
    assert [repr(decode_json(data[record.start : record.end])[0]) for record in found] == [
        repr(record.value) for record in found
    ]
    repr(found).encode()


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


def test_a_file_is_read_by_what_it_holds_and_not_by_its_name(tmp_path: Path):
    file = tmp_path / "d.json"
    want = [{"a": 1}, {"a": 2}]
    for text in (
        '{"a": 1}\n{"a": 2}\n',
        '{\n "a": 1\n}\n{\n "a": 2\n}',
        '{"data": [{"a": 1}, {"a": 2}]}',
        '{"version": [1, {"b": 2}], "train":\r\n[{"a": 1}, {"a": 2}], "n": 2}',
        '\ufeff [{"a": 1},\n{"a": 2},]',
        '[{"a": 1} {"a": 2}]',
    ):
        file.write_text(text, encoding="utf-8")
        found = list(raw_records(file, prefix="item"))
        assert [record.value for record in found] == want, text
        data = file.read_bytes()
        assert [json.loads(data[record.start : record.end]) for record in found] == want, text
    lines = tmp_path / "d.jsonl"
    for text in ('[{"a": 1},\n{"a": 2}]', '[{"a": 1}, {"a": 2}]\n', '{"a": 1}\r{"a": 2}\r', '{"a":\n1}\n{"a": 2}'):
        lines.write_bytes(text.encode())
        assert [value for _, value in read(lines)] == want, text


def test_what_cannot_be_a_data_file_is_refused_whole(tmp_path: Path):
    file = tmp_path / "d.json"
    file.write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object"):
        read(file, "data.item")
    file.write_text("{}")
    with pytest.raises(DataError, match="expected a list of objects"):
        read(file)
    file.write_text('{"train": [{"a": 1}], "test": [{"a": 2}]}')
    with pytest.raises(DataError, match="several lists, another one under 'test'"):
        read(file)
    file.write_text("id,text\n")
    with pytest.raises(DataError, match="expected a JSON list"):
        read(file)
    file.write_bytes(b"\xef\xbb\xbf [ ]")  # a byte order mark is no defect
    assert read(file) == []


@pytest.mark.parametrize("depth", [300, 5_000, 100_000])
def test_a_deeply_nested_record_of_a_list_neither_stops_nor_delays_the_others(tmp_path, depth):
    file = tmp_path / "d.json"
    deep = f'{{"a": {"[" * depth}{"]" * depth}}}'
    file.write_text(f'[{{"a": 0}}, {deep}, {{"a": 2}}]')
    started = time.process_time()
    found = [record.value for record in raw_records(file, prefix="item")]
    assert time.process_time() - started < 10  # 100,000 took minutes, as ijson's work grew with the square
    assert (found[0], found[-1]) == ({"a": 0}, {"a": 2})
    assert isinstance(found[1], dict if depth < 500 else BadRecordError)


def test_tables_that_python_has_no_values_for_are_named(tmp_path):
    file = tmp_path / "d.parquet"
    when = pa.array([0], pa.timestamp("ns", "Mars/Base"))
    pq.write_table(pa.table({"a": [1], "when": when}), file)
    with pytest.raises(DataError, match=r"behind row 0 what Python has no value for.*Mars/Base"):
        list(raw_records(file, prefix="item"))
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), file)
    with pytest.raises(DataError, match="two columns 'a'"):
        list(raw_records(file, prefix="item"))


def test_an_arrow_table_is_known_by_its_suffix_in_capitals(tmp_path):
    table = pa.table({"a": [1, 2]})
    file = tmp_path / "D.ARROW"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert [record.value for record in raw_records(file, prefix="item")] == [{"a": 1}, {"a": 2}]


def test_a_value_that_json_reads_but_cannot_write_is_one_bad_record(tmp_path, monkeypatch):
    file = tmp_path / "d.jsonl"
    file.write_text('{"qid": 1, "query": "q", "answer": ["a"], "image": ["a.png"], "x": [[1]]}\n')

    def too_deep(*_: object, **__: object) -> str:
        raise RecursionError

    monkeypatch.setattr("rsgrpo.data.readers.evisrag.json.dumps", too_deep)
    with pytest.raises(DataError, match=r"d\.jsonl line 1: one of its values is nested too deeply"):
        read_samples("evisrag", file, options=ReaderOptions(check_media=False))
