"""Rows into frames and back, whatever the sizes; and what a reader says to a document that was cut off."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore.codec.digest import MODULUS, format_digest, row_digest
from coldstore.document.reader import frame_rows, lines, matching_rows, read_header, read_rows
from coldstore.document.writer import DocumentWriter, PlainFrame, RowBatch, batches
from coldstore.errors import CorruptDocument, TruncatedDocument
from tests.unit.samples import header

values = st.none() | st.integers() | st.text(max_size=12) | st.sampled_from(["]}", "],", "{", "\n]}\n", '"dailyMemories":[', "},", "alice"])
row = st.dictionaries(st.text(max_size=4), values | st.lists(values, max_size=3), max_size=3).map(
    lambda r: json.dumps(r, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
)
arrays = st.lists(
    st.sampled_from(["dailyMemories", "graphEntities", "a b", 'we"ird', "é", "]}", "{"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    unique=True,
    min_size=1,
    max_size=4,
)
sizes = st.sampled_from([0, 1, 10, 40, 100, 10_000])


@st.composite
def documents(draw):
    """(arrays, the rows of each, frames, batches of each)."""
    names = draw(arrays)
    tables = [draw(st.lists(row, max_size=8)) for _ in names]
    frames, made = write(names, tables, batch_size=draw(sizes), frame_size=draw(sizes))
    return names, tables, frames, made


def write(names, tables, *, batch_size, frame_size):
    document = DocumentWriter(names, frame_size=frame_size)
    frames, made = [document.header(header(*names))], []
    for rows in tables:
        document.open()
        made.append(list(batches(iter(rows), size=batch_size)))
        for batch in made[-1]:
            frame = document.rows(batch)
            if frame:
                frames.append(frame)
        frames.append(document.close())
    return frames, made


def plain(frame: PlainFrame) -> bytes:
    return b"".join(frame.pieces)


@settings(deadline=None, max_examples=80)
@given(documents())
def test_the_frames_are_one_json_object(document):
    names, tables, frames, _ = document
    whole = json.loads(b"".join(map(plain, frames)))
    assert whole["snapshotAt"] == "2026-02-26T02:00:00.000Z"
    assert list(whole)[-len(names) :] == names
    assert {n: whole[n] for n in names} == {n: [json.loads(r) for r in rows] for n, rows in zip(names, tables, strict=True)}


@settings(deadline=None, max_examples=80)
@given(documents())
def test_every_frame_gives_its_rows(document):
    names, tables, frames, _ = document
    assert frames[0].tier is None
    found = {n: [] for n in names}
    for frame in frames[1:]:
        assert frame.size == len(plain(frame))
        rows = list(frame_rows(plain(frame)))
        assert len(rows) == frame.rows
        assert plain(frame).endswith(b"\n")
        found[frame.tier] += rows
    assert found == dict(zip(names, tables, strict=True))
    assert [n for i, n in enumerate([f.tier for f in frames[1:]]) if i == 0 or frames[i].tier != n] == names


@settings(deadline=None, max_examples=80)
@given(documents(), st.integers(1, 50))
def test_the_lines_give_the_same_rows(document, step):
    names, tables, frames, _ = document
    whole = b"".join(map(plain, frames))
    rest = lines(whole[i : i + step] for i in range(0, len(whole), step))
    assert read_header(next(rest)) == header(*names)
    assert list(read_rows(rest, names)) == [(n, r) for n, rows in zip(names, tables, strict=True) for r in rows]


@settings(deadline=None)
@given(documents())
def test_batches_add_up(document):
    _, tables, _, made = document
    for rows, found in zip(tables, made, strict=True):
        assert sum(b.rows for b in found) == len(rows)
        assert b"".join(b.body for b in found) == b"".join(r + b",\n" for r in rows)
        assert sum(b.digest for b in found) == sum(map(row_digest, rows))
        assert all(b.rows for b in found)


@settings(deadline=None)
@given(st.lists(row, max_size=10), sizes)
def test_a_batch_ends_when_it_is_full(rows, size):
    made = list(batches(rows, size=size))
    for batch in made[:-1]:
        assert len(batch.body) >= size
    for batch in made:
        *but_last, _, end = batch.body.split(b",\n") if batch.rows > 1 else [b"", b""]
        assert end == b""
        assert batch.rows == 1 or sum(len(r) + 2 for r in but_last) < max(size, 1)


def test_frames_are_about_as_large_as_asked():
    rows = [b'{"id":%d}' % n for n in range(1000)]
    frames, _ = write(["a"], [rows], batch_size=100, frame_size=1000)
    assert len(frames) > 5
    for frame in frames[1:]:
        assert frame.size <= 1000 + 200


def test_a_document_by_hand():
    frames, _ = write(["notes", "none", "last"], [[b'{"id":1}', b'{"id":2}'], [], [b"{}"]], batch_size=1, frame_size=0)
    assert [(f.tier, f.rows, plain(f)) for f in frames[1:]] == [
        ("notes", 1, b'"notes":[\n{"id":1},\n'),
        ("notes", 1, b'{"id":2}\n],\n'),
        ("none", 0, b'"none":[\n],\n'),
        ("last", 1, b'"last":[\n{}\n]}\n'),
    ]
    assert plain(frames[0]).startswith(b'{"format":"coldstore/1",')
    assert plain(frames[0]).endswith(b",\n")


# --- one owner ---------------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(row, max_size=8), st.sampled_from([b"alice", b"{", b"}", b",", b'"', b"]", b":[", b"[", b"1", b"\\n"]), sizes)
def test_matching_rows_are_those_that_hold_the_needle(rows, needle, size):
    frames, _ = write(["a", "b"], [rows, rows], batch_size=1, frame_size=size)
    for frame in frames[1:]:
        data = plain(frame)
        found = list(matching_rows(data, needle))
        every = list(frame_rows(data))
        assert [r for r in found if needle in r] == [r for r in every if needle in r]
        assert needle == b"," or all(needle in r for r in found)  # a comma may be the one behind the row


@settings(deadline=None)
@given(st.lists(st.sampled_from([b'{"u":"a"}', b'{"u":"b"}', b'{"u":"ab"}']), max_size=10), st.booleans())
def test_matching_rows_of_a_body_without_a_last_newline(rows, ended):
    body = b",\n".join(rows) + (b"\n" if ended else b"")
    assert list(matching_rows(body, b'"a"')) == [r for r in rows if b'"a"' in r]
    assert list(frame_rows(body)) == rows


# --- digests -----------------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(row, max_size=8).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), sizes, sizes)
def test_a_digest_does_not_depend_on_the_order(both, one, other):
    first, second = both
    totals = [sum(b.digest for b in batches(rows, size=size)) for rows, size in ((first, one), (second, other))]
    assert format_digest(totals[0]) == format_digest(totals[1])


@settings(deadline=None)
@given(st.lists(row, min_size=1, max_size=8), row)
def test_a_digest_notices_rows_that_are_missing_doubled_or_changed(rows, other):
    whole = format_digest(sum(map(row_digest, rows)))
    assert format_digest(sum(map(row_digest, rows[1:]))) != whole
    assert format_digest(sum(map(row_digest, [*rows, rows[0]]))) != whole
    assert format_digest(sum(map(row_digest, [*rows, rows[0], rows[0]]))) != whole  # an XOR would not see it
    if other != rows[0]:
        assert format_digest(sum(map(row_digest, [other, *rows[1:]]))) != whole


def test_the_form_of_a_digest():
    assert format_digest(0) == "0" * 32
    assert format_digest(MODULUS - 1) == "f" * 32
    assert format_digest(MODULUS + 255) == "0" * 30 + "ff"
    assert f"{row_digest(b''):032x}" == "99aa06d3014798d86001c324468d497f"  # XXH3-128 of nothing
    assert row_digest(memoryview(b"{}")) == row_digest(b"{}")


# --- what is refused ---------------------------------------------------------------------------------------------------------------

NAMES = ["notes", "none", "last"]
FRAMES, _ = write(NAMES, [[b'{"id":1}', b'{"id":2,"t":"x"}'], [], [b'{"id":3}', b"{}"]], batch_size=1, frame_size=0)
BODY = b"".join(map(plain, FRAMES[1:]))


def rows_of(body: bytes) -> list[tuple[str, bytes]]:
    return list(read_rows(lines([body]), NAMES, key="memory.json"))


def test_truncation_anywhere_is_refused():
    whole = rows_of(BODY)
    for cut in range(len(BODY)):
        if BODY[cut:] == b"\n":
            assert rows_of(BODY[:cut]) == whole
            continue
        with pytest.raises((TruncatedDocument, CorruptDocument)) as caught:
            rows_of(BODY[:cut])
        assert "memory.json" in str(caught.value)


def test_truncation_at_the_end_of_a_line_is_told_as_such():
    every = BODY.splitlines(keepends=True)
    for count in range(len(every)):
        with pytest.raises(TruncatedDocument) as caught:
            rows_of(b"".join(every[:count]))
        assert caught.value.hint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"none":[', b'"some":['),
        (b'"none":[\n],\n', b""),
        (b'"none":[\n],\n', b'"none":[\n],\n"none":[\n],\n'),
        (b'{"id":1},', b'{"id":1}'),
        (b'{"id":1},', b'["id",1],'),
        (b'{"id":1},', b' {"id":1},'),
        (b'{"id":1},', b""),
        (b'"notes":[\n', b""),
        (b'"notes":[\n', b'"notes":[\n"notes":[\n'),
        (b"]}\n", b"]}\n]}\n"),
        (b"]}\n", b"]}\nx"),
        (b"]}\n", b"],\n"),
    ],
)
def test_a_line_out_of_place_is_refused(old, new):
    assert old in BODY
    with pytest.raises((CorruptDocument, TruncatedDocument)):
        rows_of(BODY.replace(old, new, 1))


@pytest.mark.parametrize("lost", [b'{"id":2,"t":"x"}\n', b"{}\n"])
def test_a_lost_last_row_leaves_a_comma_behind(lost):
    with pytest.raises(CorruptDocument):
        rows_of(BODY.replace(lost, b"", 1))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=10), max_size=8))
def test_lines_are_those_of_the_whole(chunks):
    whole = b"".join(chunks)
    expected = whole.split(b"\n")
    assert list(lines(chunks)) == (expected if expected[-1] else expected[:-1])


def test_a_batch_made_by_hand():
    document = DocumentWriter(["a"], frame_size=100)
    document.open()
    assert document.rows(RowBatch(b"{},\n", 1, 5)) is None
    assert plain(document.close()) == b'"a":[\n{}\n]}\n'
