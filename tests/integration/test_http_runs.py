"""Runs over HTTP: the list in pages, one of them, and one as it goes on, in this process and in another."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import httpx
import pytest

from coldstore.http import routes_runs
from coldstore.postgres.runs import RunLog
from coldstore.tiers import EVERYBODY
from tests.integration.helpers import ask, run
from tests.integration.served import AT, SLOW, Served, held, remember, served, stored, wait_until, with_list

NOBODY = uuid.UUID(int=7)  # the same in every process of the tests


@pytest.fixture
def source(database) -> str:
    remember(database, "alice", "bob")
    return with_list(database)


@pytest.fixture
def api(source, tmp_path):
    with served(source, tmp_path) as found:
        yield found


def pages(api: Served, **parameters) -> Iterator[list[dict]]:
    following = f"{AT}/runs?{httpx.QueryParams(parameters)}"
    while following:
        answer = api.client.get(following)
        assert answer.status_code == 200, answer.text
        yield answer.json()["runs"]
        following = answer.json()["next"]
        assert answer.links.get("next", {}).get("url") == following


def events(lines: Iterator[str]) -> Iterator[dict]:
    """Server-sent events, each with its fields; a comment is an event with nothing but that."""
    told: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            told[name or "comment"] = value.removeprefix(" ")
        elif told:
            yield told
            told = {}


def follow(api: Served, run_id: str, **headers: str):
    return api.client.stream("GET", f"{AT}/runs/{run_id}/events", headers=headers)


# --- the list ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["with the list", "without"])
def some(request, database, tmp_path):
    """A server with seven runs: of alice and of bob by turns."""
    remember(database, "alice", "bob")
    if request.param == "with the list":
        with_list(database)
    with served(database, tmp_path) as found:
        for number in range(7):
            found.post("/snapshot", {"uid": ["alice", "bob"][number % 2], "label": str(number)})
        yield found


def test_pages_hold_every_run_once_newest_first(some):
    found = [r for page in pages(some, limit=3) for r in page]
    assert [r["details"]["label"] for r in found] == list("6543210")
    assert [len(page) for page in pages(some, limit=3)] == [3, 3, 1]
    assert [len(page) for page in pages(some, limit=7)] == [7]


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [({"uid": "bob"}, "531"), ({"kind": "restore"}, ""), ({"kind": "snapshot", "uid": "alice"}, "6420"), ({"state": "failed"}, "")],
)
def test_pages_of_what_is_asked_for(some, wanted, labels):
    assert "".join(r["details"]["label"] for page in pages(some, limit=2, **wanted) for r in page) == labels


def test_one_run(some):
    (newest, *_), *_ = pages(some, limit=1)
    told = some.get(f"/runs/{newest['id']}").json()
    assert (told["state"], told["trigger"], told["rows"], told["uid"]) == ("succeeded", "http", 3, "alice")
    assert told["snapshotId"] in stored(some)
    assert told["finishedAt"] >= told["startedAt"]


def test_the_library_says_the_same(api, source):
    api.post("/snapshot", {"uid": "alice"})
    (told,) = api.get("/runs").json()["runs"]
    log = RunLog(source)
    try:
        (known,) = log.list()
    finally:
        log.close()
    assert (told["id"], told["state"], told["rows"], told["bytes"]) == (known.id, known.state, known.rows, known.bytes)


@pytest.mark.parametrize("path", [f"/runs/{NOBODY}", f"/runs/{NOBODY}/events", f"/runs?cursor={NOBODY}"])
def test_a_run_that_there_is_not(some, path):
    answer = some.client.get(AT + path)
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:coldstore:error:NotFound")


@pytest.mark.parametrize("path", ["/runs/one", "/runs/one/events", "/runs?cursor=x", "/runs?limit=0", "/runs?limit=1001", "/runs?kind=x"])
def test_what_makes_no_sense(api, path):
    assert api.client.get(AT + path).status_code == 422


def test_what_waits_for_its_turn_is_told(source, tmp_path):
    with served(source, tmp_path, server_workers=1) as api:
        with held(source):
            ids = [api.post("/snapshot", {"uid": uid}, Prefer="respond-async").json()["run"] for uid in ("alice", "bob")]
            wait_until(lambda: api.get(f"/runs/{ids[0]}").json()["state"] == "running")
            assert api.get(f"/runs/{ids[1]}").json()["state"] == "queued"
            wait_until(lambda: len(api.get("/runs").json()["runs"]) == 2)
            assert [r["id"] for r in api.get("/runs", state="queued").json()["runs"]] == [ids[1]]
            assert [r["id"] for r in api.get("/runs", state="running").json()["runs"]] == [ids[0]]
        wait_until(lambda: api.service.jobs.alive == 0)
        assert {r["state"] for r in api.get("/runs").json()["runs"]} == {"succeeded"}


def test_a_dead_run_of_another_process_is_closed(api, source):
    run(
        source,
        "INSERT INTO coldstore.runs (kind, trigger, heartbeat_at, started_at)"
        " VALUES ('snapshot', 'cli', now() - interval '1 day', now() - interval '1 day')",
    )
    (told,) = api.get("/runs").json()["runs"]
    assert told["state"] == "failed"


# --- one as it goes on -------------------------------------------------------------------------------------------------------------


def test_from_the_queue_to_the_end(api, source):
    with held(source):
        accepted = api.post("/snapshot", {"uid": "alice"}, Prefer="respond-async").json()
        wait_until(lambda: api.client.get(accepted["url"]).json()["state"] == "running")
        stream = follow(api, accepted["run"])
        answer = stream.__enter__()
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = events(answer.iter_lines())
        assert next(found) == {"retry": "2000"}
        first = next(found)
        assert (first["event"], json.loads(first["data"])["state"]) == ("state", "running")
    rest = list(found)
    stream.__exit__(None, None, None)
    last = json.loads(rest[-1]["data"])
    assert (rest[-1]["event"], last["state"], last["snapshotId"]) == ("state", "succeeded", *stored(api))
    assert last["rows"] == 3


def test_progress_is_told(source, tmp_path):
    run(source, SLOW)
    with served(source, tmp_path, tiers={"slow": {"table": "slow"}}, server_stop_seconds=0, frame_mb=1) as api:
        accepted = api.post("/snapshot", {"uid": "alice"}, Prefer="respond-async").json()
        with follow(api, accepted["run"]) as answer:
            for event in events(answer.iter_lines()):
                told = json.loads(event.get("data", "{}"))
                if event.get("event") == "progress" and told["phase"] == "slow" and told["bytes"]:
                    break
        assert api.client.get(accepted["url"]).json()["progress"]["phase"] == "slow"


def test_a_failure_is_told(api):
    with follow(api, api.post("/snapshot", {"uid": "nobody"}, Prefer="respond-async").json()["run"]) as answer:
        last = list(events(answer.iter_lines()))[-1]
    told = json.loads(last["data"])
    assert (told["state"], told["error"]) == ("failed", "NotFound: there is not one row of user 'nobody'")


def test_who_comes_back_is_told_what_is_new_and_nothing_twice(api, source):
    with held(source):
        accepted = api.post("/snapshot", {"uid": "alice"}, Prefer="respond-async").json()
        wait_until(lambda: api.client.get(accepted["url"]).json()["state"] == "running")
        with follow(api, accepted["run"]) as answer:
            seen = next(e for e in events(answer.iter_lines()) if "id" in e)["id"]
        stream = follow(api, accepted["run"], **{"Last-Event-ID": seen})
        answer = stream.__enter__()
    told = [e for e in events(answer.iter_lines()) if "id" in e]
    stream.__exit__(None, None, None)
    assert seen not in {e["id"] for e in told}
    assert json.loads(told[-1]["data"])["state"] == "succeeded"
    again = api.client.get(f"{AT}/runs/{accepted['run']}/events", headers={"Last-Event-ID": told[-1]["id"]})
    assert (again.status_code, again.content) == (204, b"")


def test_a_run_of_another_process(source, tmp_path, monkeypatch):
    monkeypatch.setattr(routes_runs, "_LOOK", 0.02)
    with served(source, tmp_path) as here, served(source, tmp_path) as there:
        with held(source):
            accepted = there.post("/snapshot", {"uid": "alice"}, Prefer="respond-async").json()
            wait_until(lambda: ask(source, "SELECT FROM coldstore.runs"))
            stream = follow(here, accepted["run"])
            found = events(stream.__enter__().iter_lines())
            assert [json.loads(e["data"])["state"] for e in (next(found), next(found)) if "data" in e] == ["running"]
        assert json.loads(list(found)[-1]["data"])["state"] == "succeeded"
        stream.__exit__(None, None, None)


def test_silence_is_filled(source, tmp_path, monkeypatch):
    monkeypatch.setattr(routes_runs, "_LOOK", 0.02)
    monkeypatch.setattr(routes_runs, "_HEARTBEAT", 0.05)
    log = RunLog(source)
    handle = log.begin("snapshot", trigger="cli", scope=EVERYBODY)
    with served(source, tmp_path) as api, follow(api, handle.id) as answer:
        found = events(answer.iter_lines())
        assert [sorted(next(found)) for _ in range(4)] == [["retry"], ["data", "event", "id"], ["comment"], ["comment"]]
        handle.succeeded()
        handle.end()
        assert json.loads([e for e in found if "data" in e][-1]["data"])["state"] == "succeeded"
    log.close()


def test_who_goes_away_leaves_nothing_behind(api, source):
    with held(source):
        accepted = api.post("/snapshot", {"uid": "alice"}, Prefer="respond-async").json()
        for _ in range(5):
            with follow(api, accepted["run"]) as answer:
                next(answer.iter_lines())
        wait_until(lambda: not api.server.server_state.tasks)


def test_the_end_of_the_server_ends_the_stream(source, tmp_path):
    with served(source, tmp_path, server_stop_seconds=30) as api:
        log = RunLog(source)
        handle = log.begin("snapshot", trigger="cli", scope=EVERYBODY)
        stream = follow(api, handle.id)
        found = events(stream.__enter__().iter_lines())
        next(found)
        api.service.jobs.stop()
        assert [e["event"] for e in found] in ([], ["state"])
        stream.__exit__(None, None, None)
        handle.end()
        log.close()
        answer = api.post("/snapshot", {"uid": "alice"})
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:coldstore:error:Stopping")
        assert answer.headers["retry-after"]
