"""Snapshots over HTTP: the list page by page, one of them, its document by ranges, and its deletion."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest

from coldstore.app import ColdStore
from coldstore.config import build
from coldstore.keyrings.local import make_key_file
from coldstore.storage import layout
from coldstore.storage.local import LocalStore
from tests.integration.helpers import ask, run
from tests.integration.served import ADMIN, AT, Served, remember, served, with_list


@pytest.fixture
def source(database) -> str:
    remember(database, "alice", "bob")
    return database


@pytest.fixture
def api(source, tmp_path):
    with served(source, tmp_path) as found:
        yield found


def taken(api: Served, **body: object) -> dict:
    done = api.post("/snapshot", body)
    assert done.status_code == 201, done.text
    return done.json()


def document(api: Served, snapshot: str, *, form: str | None = None, method: str = "GET", **headers: str) -> httpx.Response:
    address = f"{AT}/snapshots/{quote(snapshot, safe='')}/document"
    return api.client.request(method, address, params={"form": form} if form else {}, headers=headers)


# --- the list ----------------------------------------------------------------------------------------------------------------------


def test_the_list_is_that_of_the_command_line(api):
    made = [taken(api, uid="alice"), taken(api, label="nightly"), taken(api, workspace="red")]
    found = api.get("/snapshots")
    assert found.status_code == 200
    assert found.json() == {"snapshots": made[::-1], "next": None}
    assert "link" not in found.headers
    with ColdStore(build({"path": str(api.folder)}, {})) as cold:
        assert [i.as_dict() for i in cold.list_snapshots()] == found.json()["snapshots"]


def test_the_list_goes_on_from_page_to_page(api):
    made = [taken(api, uid=uid)["id"] for uid in ("alice", "bob", "alice", "bob", "alice")]
    seen, address, pages = [], f"{AT}/snapshots?limit=2", 0
    while address:
        found = api.client.get(address)
        seen += [s["id"] for s in found.json()["snapshots"]]
        address, pages = found.json()["next"], pages + 1
        assert found.links.get("next", {}).get("url") == address
    assert (seen, pages) == (made[::-1], 3)
    # What comes between two pages moves nothing.
    first = api.get("/snapshots", limit=2, uid="alice").json()
    taken(api, uid="alice")
    rest = api.client.get(first["next"]).json()
    assert [s["id"] for s in [*first["snapshots"], *rest["snapshots"]]] == [i for i in made[::-1] if "alice" in i]


def test_pages_go_over_days(source, tmp_path):
    """Ten days, of which some have nothing of this user."""
    with served(source, tmp_path) as api:
        info = taken(api, uid="alice")
        store = LocalStore(str(api.folder))
        manifest = store.read(info["manifest"])
        for day in range(1, 10):
            moved = layout.snapshot_id(layout.parse_scope_name("alice" if day % 3 else "bob").scope, 1_700_000_000_000 + day * 86_400_000)
            with store.create(layout.manifest_key(moved)) as out:
                out.write(manifest)  # another's: each is listed as damaged
        seen, address = [], f"{AT}/snapshots?limit=1&uid=alice"
        while address:
            found = api.client.get(address).json()
            seen += found["snapshots"]
            address = found["next"]
        assert len(seen) == 7
        assert [s["id"] for s in seen] == sorted((s["id"] for s in seen), reverse=True)
        assert [s.get("error") for s in seen] == [None] + ["NotFound"] * 6


def test_filters(api):
    alice, everybody, red = taken(api, uid="alice", label="a b"), taken(api), taken(api, workspace="red")
    day = alice["snapshotAt"][:10]

    def ids(**parameters: object) -> list[str]:
        found = api.get("/snapshots", **parameters)
        assert found.status_code == 200, found.text
        return [s["id"] for s in found.json()["snapshots"]]

    assert ids(uid="alice") == [alice["id"]]
    assert ids(workspace="red") == [red["id"]]
    assert ids(everybody="true") == [everybody["id"]]
    assert ids(label="a b") == [alice["id"]]
    assert ids(kind="full") == [red["id"], everybody["id"], alice["id"]]
    assert ids(kind="incremental") == []
    assert ids(date=day, uid="alice") == [alice["id"]]
    assert ids(date="2001-01-01") == []


@pytest.mark.parametrize(
    "parameters",
    [
        {"user": "alice"},
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "x"},
        {"date": "2026-13-01"},
        {"date": "1700000000"},
        {"kind": "half"},
        {"cursor": "yesterday"},
        {"cursor": "memory-all-99999999999999999"},
        {"uid": "a", "workspace": "b"},
        {"uid": "a", "everybody": "true"},
        {"uid": ""},
    ],
)
def test_a_question_that_makes_no_sense_is_refused(api, parameters):
    found = api.get("/snapshots", **parameters)
    assert found.status_code == 422
    assert found.headers["content-type"] == "application/problem+json"
    assert found.json()["errors"]


def test_a_damaged_snapshot_hides_no_other(api):
    good, bad = taken(api, uid="alice"), taken(api, uid="bob")
    path = api.folder / bad["manifest"]
    path.write_bytes(path.read_bytes()[:-20])
    told = api.get("/snapshots").json()["snapshots"]
    assert told[1] == good
    assert (told[0]["id"], told[0]["error"]) == (bad["id"], "CorruptManifest")
    found = api.get(f"/snapshots/{bad['id']}")
    assert (found.status_code, found.json()["type"]) == (500, "urn:coldstore:error:CorruptManifest")


def test_an_empty_store_lists_nothing(api):
    assert api.get("/snapshots").json() == {"snapshots": [], "next": None}


# --- one of them -------------------------------------------------------------------------------------------------------------------


def test_one_is_shown_as_its_manifest_has_it(api):
    info = taken(api, uid="alice")
    shown = api.get(f"/snapshots/{info['id']}")
    assert shown.json() == json.loads((api.folder / info["manifest"]).read_bytes())


def test_a_name_of_any_letters_is_found(source, tmp_path):
    remember(source, "a/b ü%")
    with served(source, tmp_path) as api:
        done = api.post("/snapshot", {"uid": "a/b ü%"})
        info = done.json()
        assert api.client.get(done.headers["location"]).json()["uid"] == "a/b ü%"
        assert api.get("/snapshots", uid="a/b ü%").json()["snapshots"] == [info]
        assert document(api, info["id"]).json()["uid"] == "a/b ü%"


@pytest.mark.parametrize("snapshot", ["memory-all-1", "nonsense", "memory-..-1", "memory-all-999999999999999", "memory-all-", "%00"])
@pytest.mark.parametrize("path", ["", "/document", "/document?form=stored"])
def test_what_is_not_there_is_not_found(api, snapshot, path):
    found = api.client.get(f"{AT}/snapshots/{snapshot}{path}")
    assert (found.status_code, found.json()["type"]) == (404, "urn:coldstore:error:NotFound")
    assert str(api.folder) not in found.text or "there is no snapshot" in found.json()["detail"]


# --- its document ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["none", "zstd", "sealed"])
def many(request, source, tmp_path):
    """A server whose snapshot has more than one frame of its rows, and that snapshot."""
    text = "md5(n::text) || repeat(md5((n * 7)::text), 60)"
    run(
        source,
        f"INSERT INTO procedural_memory (uid, kind, name, trigger) SELECT 'alice', 'rule', 'r' || n, {text} FROM generate_series(1, 2500) n",
    )
    settings = {"compression": "zstd" if request.param == "sealed" else request.param, "frame_mb": 1}
    if request.param == "sealed":
        make_key_file(tmp_path / "key")
        settings["key_rings"] = [f"local:{tmp_path / 'key'}"]
    with served(source, tmp_path, **settings) as api:
        info = taken(api)
        assert len(json.loads((api.folder / info["manifest"]).read_bytes())["frames"]) > 6
        yield api, info


def test_the_whole_document(many):
    api, info = many
    with ColdStore(api.service.settings) as cold:
        plain = b"".join(cold.stored_document(info["id"]).chunks())
    got = document(api, info["id"])
    assert got.status_code == 200
    assert got.content == plain
    assert got.headers["content-type"] == "application/json"
    assert got.headers["content-length"] == str(info["bytes"])
    assert got.headers["etag"] == f'"{hashlib.sha256(plain).hexdigest()}"'
    assert got.headers["accept-ranges"] == "bytes"
    stored = document(api, info["id"], form="stored")
    assert stored.content == (api.folder / info["path"]).read_bytes()
    assert stored.headers["etag"] == f'"{info["sha256"]}"'
    assert Path(info["path"]).name in stored.headers["content-disposition"]


@pytest.mark.parametrize("form", ["plain", "stored"])
def test_any_part_of_it(many, form):
    api, info = many
    whole = document(api, info["id"], form=form)
    size, tag = len(whole.content), whole.headers["etag"]
    manifest = json.loads((api.folder / info["manifest"]).read_bytes())
    edge = sum(f["plain" if form == "plain" else "length"] for f in manifest["frames"][:4])
    spans = [(0, 1), (0, size), (edge - 1, edge + 1), (edge, edge + 1), (edge - 10, size), (size - 1, size), (1, size - 1)]
    for start, stop in spans:
        got = document(api, info["id"], form=form, Range=f"bytes={start}-{stop - 1}")
        assert (got.status_code, got.headers["content-range"]) == (206, f"bytes {start}-{stop - 1}/{size}")
        assert got.headers["content-length"] == str(stop - start)
        assert got.headers["etag"] == tag
        assert got.content == whole.content[start:stop]
    assert document(api, info["id"], form=form, Range="bytes=-7").content == whole.content[-7:]
    assert document(api, info["id"], form=form, Range="bytes=0-4,9-10").status_code == 200
    assert document(api, info["id"], form=form, Range="bytes=0-4", **{"If-Range": tag}).status_code == 206
    assert document(api, info["id"], form=form, Range="bytes=0-4", **{"If-Range": '"other"'}).content == whole.content
    refused = document(api, info["id"], form=form, Range=f"bytes={size}-")
    assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}")
    assert refused.headers["content-type"] == "application/problem+json"


def test_a_client_that_has_it_gets_nothing(many):
    api, info = many
    tag = document(api, info["id"], method="HEAD").headers["etag"]
    for method in ("GET", "HEAD"):
        got = document(api, info["id"], method=method, **{"If-None-Match": f'"x", {tag}'})
        assert (got.status_code, got.content, got.headers["etag"]) == (304, b"", tag)
    assert document(api, info["id"], form="stored", **{"If-None-Match": tag}).status_code == (304 if info["codec"] == "none" else 200)


def test_head_says_what_get_would(many):
    api, info = many
    for form in ("plain", "stored"):
        head, get = (document(api, info["id"], form=form, method=m) for m in ("HEAD", "GET"))
        assert head.status_code == 200
        assert head.content == b""
        for name in ("etag", "content-length", "content-type", "accept-ranges", "content-disposition"):
            assert head.headers[name] == get.headers[name]


def test_a_part_is_read_without_what_is_before_it(many):
    """The frames before it are destroyed, and it comes whole all the same; those frames do not."""
    api, info = many
    whole = document(api, info["id"]).content
    manifest = json.loads((api.folder / info["manifest"]).read_bytes())
    frame = manifest["frames"][3]
    with (api.folder / info["path"]).open("r+b") as file:
        file.write(os.urandom(frame["offset"]))
    begins = sum(f["plain"] for f in manifest["frames"][:3])
    assert document(api, info["id"], Range=f"bytes={begins}-").content == whole[begins:]
    for form, end in (("plain", begins), ("stored", frame["offset"])):
        refused = document(api, info["id"], form=form, Range=f"bytes=0-{end}")
        assert (refused.status_code, refused.json()["type"]) == (500, "urn:coldstore:error:CorruptDocument")


def test_damage_that_shows_too_late_ends_the_connection(many):
    """The status is sent by then: what the client has must not look like a whole document."""
    api, info = many
    path = api.folder / info["path"]
    with path.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(os.urandom(20))
    for form in ("plain", "stored"):
        with pytest.raises(httpx.RemoteProtocolError):
            document(api, info["id"], form=form)
    assert api.client.get("/healthz").status_code == 200


def test_a_sealed_document_needs_its_key_for_the_plain_form_alone(source, tmp_path):
    key = tmp_path / "key"
    make_key_file(key)
    with served(source, tmp_path, key_rings=[f"local:{key}"]) as api:
        info = taken(api)
    with served(source, tmp_path) as api:
        refused = document(api, info["id"])
        assert (refused.status_code, refused.json()["type"]) == (502, "urn:coldstore:error:KeyMissing")
        assert document(api, info["id"], form="stored").content == (api.folder / info["path"]).read_bytes()


def test_who_may_only_read_may_read_it(api):
    info = taken(api, uid="alice")
    address = f"{AT}/snapshots/{info['id']}"
    assert api.reader.get(address + "/document").json()["uid"] == "alice"
    refused = api.reader.delete(address)
    assert refused.status_code == 403
    assert api.reader.get(address).status_code == 200


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_client_that_goes_away_in_the_middle_leaves_nothing_behind(source, tmp_path):
    """Thirty of them read the head of a document that no buffer of a socket holds, and close."""
    text = "md5(n::text) || repeat(md5((n * 7)::text), 900)"
    run(
        source,
        f"INSERT INTO procedural_memory (uid, kind, name, trigger) SELECT 'alice', 'rule', 'r' || n, {text} FROM generate_series(1, 1500) n",
    )
    with served(source, tmp_path, frame_mb=1) as api:
        info = taken(api)
        assert info["bytes"] > 30 << 20
        document(api, info["id"], method="HEAD")
        files, threads = open_files(), threading.active_count()
        address = urlsplit(api.url)
        for _ in range(30):
            with socket.create_connection((address.hostname, address.port)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.sendall(f"GET {AT}/snapshots/{info['id']}/document HTTP/1.1\r\nHost: x\r\nx-api-key: {ADMIN}\r\n\r\n".encode())
                assert sock.recv(100).startswith(b"HTTP/1.1 200")
        while api.server.server_state.tasks or open_files() > files:
            assert api.client.get("/healthz").status_code == 200
        assert threading.active_count() <= threads + 45  # the pool's, which stay
        assert document(api, info["id"]).headers["content-length"] == str(info["bytes"])


# --- its deletion ------------------------------------------------------------------------------------------------------------------


def test_deletion_leaves_a_record_and_a_run(source, tmp_path):
    with served(with_list(source), tmp_path) as api:
        old, new = taken(api, uid="alice"), taken(api, uid="alice")
        gone = api.client.delete(f"{AT}/snapshots/{old['id']}")
        assert (gone.status_code, gone.content) == (204, b"")
        assert api.get(f"/snapshots/{old['id']}").status_code == 404
        assert [s["id"] for s in api.get("/snapshots").json()["snapshots"]] == [new["id"]]
        assert not (api.folder / old["path"]).exists()
        again = api.client.delete(f"{AT}/snapshots/{old['id']}")
        assert again.status_code == 404
        verified = api.post("/verify", {"all": True}).json()
        assert (verified["ok"], verified["orphans"]) == (True, [])  # it is known that it was not lost
        rows = ask(source, "SELECT snapshot_id, trigger, state FROM coldstore.runs WHERE kind = 'delete' ORDER BY started_at")
        assert rows == [(old["id"], "http", "succeeded")]


def test_what_must_be_kept_is_kept(source, tmp_path):
    with served(source, tmp_path, retain_days=3) as api:
        info = taken(api, uid="alice")
        refused = api.client.delete(f"{AT}/snapshots/{info['id']}")
        assert refused.status_code == 409
        told = refused.json()
        assert told["type"] == "urn:coldstore:error:ObjectLocked"
        assert told["retainedUntil"] == info["retainedUntil"]
        assert document(api, info["id"]).status_code == 200


# --- addresses ---------------------------------------------------------------------------------------------------------------------


def test_a_parameter_that_there_is_not_is_refused_everywhere(api):
    info = taken(api, uid="alice")
    for path in (
        f"/snapshots/{info['id']}/document?frm=stored",
        f"/snapshots/{info['id']}?uid=bob",
        "/runs?workspace=red",
        "/snapshots?a=1&b=2",
    ):
        found = api.client.get(AT + path)
        assert (found.status_code, found.json()["type"]) == (422, "urn:coldstore:error:InvalidRequest"), path
        assert found.json()["hint"]
    assert api.client.delete(f"{AT}/snapshots/{info['id']}?dryRun=true").status_code == 422
    assert api.get(f"/snapshots/{info['id']}").status_code == 200


def test_a_method_that_an_address_does_not_take_is_told_those_it_takes(api):
    found = api.client.put(f"{AT}/snapshots/memory-all-1")
    assert (found.status_code, found.headers["allow"]) == (405, "DELETE, GET")
    assert found.headers["content-type"] == "application/problem+json"
    assert api.client.post(f"{AT}/snapshots/memory-all-1/document").headers["allow"] == "GET, HEAD"
