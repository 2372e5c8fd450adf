"""Taking snapshots over HTTP, on a real server: what is answered, what is refused, and what is done once however often it is asked for."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from coldstore.app import ColdStore
from coldstore.errors import redact
from tests.integration.helpers import ask, record_changes, run
from tests.integration.served import ADMIN, AT, READ, SLOW, Served, held, remember, served, stored, wait_until, with_list

EVERYBODY = {"uid": None, "workspace": None}


@pytest.fixture
def source(database) -> str:
    remember(database, "alice", "bob")
    return with_list(database)


@pytest.fixture
def api(source, tmp_path):
    with served(source, tmp_path) as found:
        yield found


def problem(response: httpx.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert (told["status"], told["type"]) == (status, f"urn:coldstore:error:{code}")
    assert told["title"]
    assert told["detail"]
    assert told["requestId"] == response.headers["x-request-id"]
    return told


def shrink(api: Served, source: str, uid: str) -> None:
    """A snapshot of many rows, of which few are left."""
    run(source, f"INSERT INTO daily_memories (uid, date) SELECT '{uid}', date '2026-03-01' + n FROM generate_series(1, 200) n")
    assert api.post("/snapshot", {"uid": uid}).status_code == 201
    run(source, f"DELETE FROM daily_memories WHERE uid = '{uid}' AND date > '2026-03-01'")


# --- what is answered --------------------------------------------------------------------------------------------------------------


def test_one_user(api):
    answer = api.post("/snapshot", {"uid": "alice", "label": "before-upgrade"})
    assert answer.status_code == 201
    told = answer.json()
    assert (told["uid"], told["label"], told["kind"], told["rows"]["daily_memories"]) == ("alice", "before-upgrade", "full", 3)
    assert answer.headers["location"] == f"{AT}/snapshots/{told['id']}"
    assert stored(api) == [told["id"]]


def test_the_keys_are_those_of_the_library(api):
    told = api.post("/snapshot", {"uid": "alice"}).json()
    with ColdStore(api.service.settings) as store:
        assert told == next(iter(store.list_snapshots())).as_dict()


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b" {} ", b'{"uid": null}'])
def test_nothing_named_is_everybody(api, body):
    headers = {"content-type": "application/json"} if body else {}
    answer = api.client.post(f"{AT}/snapshot", content=body, headers=headers)
    assert answer.status_code == 201
    assert EVERYBODY.items() <= answer.json().items()
    assert answer.json()["rows"]["daily_memories"] == 6


def test_one_workspace(api):
    told = api.post("/snapshot", {"workspace": "red"}).json()
    assert (told["workspace"], told["rows"]["daily_memories"]) == ("red", 6)


@pytest.mark.parametrize("uid", ["../../etc/passwd", "all", "ws~x", "naïve ✓", "a/b", "💾", "x" * 512])
def test_whatever_a_user_is_called(api, source, uid):
    remember(source, uid)
    answer = api.post("/snapshot", {"uid": uid})
    assert answer.status_code == 201, answer.text
    assert answer.json()["uid"] == uid
    assert answer.headers["location"].isascii()


def test_a_request_may_name_itself(api):
    assert api.post("/snapshot", {"uid": "alice"}, X_Request_ID="mine-17").headers["x-request-id"] == "mine-17"
    assert api.post("/snapshot", {"uid": "alice"}, X_Request_ID="no spaces").headers["x-request-id"] != "no spaces"


def test_a_run_is_left(api, source):
    made = api.post("/snapshot", {"uid": "alice"}).json()
    assert ask(source, "SELECT kind, trigger, uid, state, snapshot_id FROM coldstore.runs") == [
        ("snapshot", "http", "alice", "succeeded", made["id"])
    ]


def test_one_that_looks_wrong_is_stored_and_refused(api, source):
    shrink(api, source, "alice")
    told = problem(api.post("/snapshot", {"uid": "alice"}), 409, "SuspectSnapshot")
    assert told["snapshot"] in stored(api)
    assert api.post("/snapshot", {"uid": "alice", "accept": True}).status_code == 201


# --- what is refused ---------------------------------------------------------------------------------------------------------------


def test_without_a_key(api):
    answer = httpx.post(f"{api.url}{AT}/snapshot", json={"uid": "alice"})
    problem(answer, 401, "Unauthorized")
    assert answer.headers["www-authenticate"].startswith("ApiKey ")


@pytest.mark.parametrize("key", ["wrong-key-of-sixteen", "", ADMIN[:-1], ADMIN + "1", ADMIN.upper(), "schlüssel"])
def test_with_a_wrong_one(api, key):
    answer = httpx.post(f"{api.url}{AT}/snapshot", headers={"x-api-key": key.encode()})
    problem(answer, 401, "Unauthorized")
    assert not key or key not in answer.text


def test_nobody_without_a_key_learns_which_addresses_there_are(api):
    assert {httpx.get(f"{api.url}{path}").status_code for path in (f"{AT}/runs", f"{AT}/nothing", "/nothing", "/docs")} == {401}


def test_a_key_that_may_read_changes_nothing(api):
    problem(api.reader.post(f"{AT}/snapshot"), 403, "Forbidden")
    assert api.reader.get(f"{AT}/runs").status_code == 200
    assert stored(api) == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"uid": "alice", "workspace": "red"}, "choose one"),
        ({"uid": ""}, "body.uid"),
        ({"uid": "a\0b"}, "body.uid"),
        ({"uid": "x" * 513}, "body.uid"),
        ({"uid": 7}, "body.uid"),
        ({"user": "alice"}, "body.user"),
        ({"kind": "differential"}, "body.kind"),
        ({"accept": "yes"}, "body.accept"),
        (["alice"], "body"),
        ("alice", "body"),
    ],
)
def test_a_body_that_makes_no_sense(api, body, told):
    assert told in problem(api.post("/snapshot", body), 422, "InvalidRequest")["detail"]
    assert stored(api) == []


@pytest.mark.parametrize("body", [b"{", b'{"uid": "alice"', b"\xff\xfe", b'{"uid": "\\ud800"}', b"{'uid': 1}", b"[" * 30_000])
def test_a_body_that_is_no_json(api, body):
    answer = api.client.post(f"{AT}/snapshot", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.headers["content-type"] == "application/problem+json"


def test_what_is_sent_is_not_repeated(api):
    told = problem(api.post("/snapshot", {"uid": ["hush-hush"], "password=sesame": 1}), 422, "InvalidRequest")
    assert "hush-hush" not in json.dumps(told)
    assert "sesame" not in json.dumps(told)


def test_a_body_of_another_kind(api):
    answer = api.client.post(f"{AT}/snapshot", content=b"uid=alice", headers={"content-type": "application/x-www-form-urlencoded"})
    problem(answer, 415, "UnsupportedMediaType")


def test_too_large_a_body(source, tmp_path):
    def pieces():
        for _ in range(40):
            yield b" " * 100

    with served(source, tmp_path, server_body_kb=1) as api:
        assert api.client.post(f"{AT}/snapshot", content=b" " * 1022 + b"{}").status_code == 201
        problem(api.client.post(f"{AT}/snapshot", content=b" " * 1023 + b"{}"), 413, "BodyTooLarge")
        problem(api.client.post(f"{AT}/snapshot", content=pieces()), 413, "BodyTooLarge")  # its length is not told
        problem(api.client.post(f"{AT}/snapshot", content=b"x" * 5_000_000), 413, "BodyTooLarge")


def test_somebody_without_memory(api):
    told = problem(api.post("/snapshot", {"uid": "nobody"}), 404, "NotFound")
    assert told["hint"]


def test_other_methods_and_addresses(api):
    answer = api.client.put(f"{AT}/snapshot")
    problem(answer, 405, "MethodNotAllowed")
    assert answer.headers["allow"] == "POST"
    problem(api.client.get(f"{AT}/nothing"), 404, "RouteNotFound")
    problem(api.client.post(f"{AT}/snapshot/"), 404, "RouteNotFound")


def test_too_often(source, tmp_path):
    with served(source, tmp_path, server_rate_per_second=0.01, server_rate_burst=2) as api:
        assert [api.get("/runs").status_code for _ in range(2)] == [200, 200]
        answer = api.get("/runs")
        problem(answer, 429, "RateLimited")
        assert 90 <= int(answer.headers["retry-after"]) <= 100
        assert api.reader.get(f"{AT}/runs").status_code == 200  # another key


def test_a_defect_is_told_by_its_number_alone(api, monkeypatch, caplog):
    def broken(*_args, **_more):
        raise RuntimeError("password=hush-hush went wrong")

    monkeypatch.setattr(ColdStore, "snapshot", broken)
    told = problem(api.post("/snapshot", {"uid": "alice"}), 500, "Unexpected")
    assert "RuntimeError" not in json.dumps(told)
    assert "RuntimeError" in caplog.text
    assert "hush-hush" not in caplog.text


def test_a_defect_in_a_route_is_told_by_the_request(api, monkeypatch, caplog):
    def broken(*_args, **_more):
        raise RuntimeError("password=hush-hush went wrong")

    monkeypatch.setattr(api.service.jobs, "known", broken)
    told = problem(api.get("/runs"), 500, "Unexpected")
    assert told["requestId"] in caplog.text
    assert redact("password=hush-hush") in caplog.text
    assert "hush-hush" not in caplog.text


def test_a_database_that_is_away(source, tmp_path):
    away = source.replace("test_", "no_such_")
    with served(away, tmp_path) as api:
        told = problem(api.post("/snapshot", {"uid": "alice"}), 503, "DatabaseUnreachable")
        assert told["detail"].startswith("cannot connect")


def test_half_a_request_and_gone(api):
    with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as half:
        half.sendall(f"POST {AT}/snapshot HTTP/1.1\r\nHost: x\r\nx-api-key: {ADMIN}\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert api.post("/snapshot", {"uid": "alice"}).status_code == 201
    assert len(stored(api)) == 1


# --- waiting -----------------------------------------------------------------------------------------------------------------------


def test_one_that_takes_longer_is_told_where_to_look(source, tmp_path):
    with served(source, tmp_path, server_wait_seconds=0.05) as api:
        with held(source):
            answer = api.post("/snapshot", {"uid": "alice"})
            assert answer.status_code == 202
            accepted = answer.json()
            assert answer.headers["location"] == accepted["url"] == f"{AT}/runs/{accepted['run']}"
            assert int(answer.headers["retry-after"]) >= 1
            assert api.client.get(accepted["url"]).json()["state"] in {"queued", "running"}
        wait_until(lambda: api.client.get(accepted["url"]).json()["state"] == "succeeded")
        assert stored(api) == [api.client.get(accepted["url"]).json()["snapshotId"]]


@pytest.mark.parametrize("preference", ["respond-async", "respond-async, wait=0", "wait=0"])
def test_a_caller_that_does_not_want_to_wait(api, source, preference):
    with held(source):
        answer = api.post("/snapshot", {"uid": "alice"}, Prefer=preference)
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == preference
    wait_until(lambda: stored(api))


def test_a_caller_that_waits_longer_than_usual(source, tmp_path):
    with served(source, tmp_path, server_wait_seconds=0) as api:
        answer = api.post("/snapshot", {"uid": "alice"}, Prefer="wait=60")
        assert answer.status_code == 201
        assert answer.headers["preference-applied"] == "wait=60"


# --- at the same time --------------------------------------------------------------------------------------------------------------


def at_once(count: int, call):
    """`call(n)` from so many threads, that begin together."""
    barrier = threading.Barrier(count)

    def one(number: int):
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_fifty_at_once_for_one_user_are_one_snapshot(api, source):
    answers = at_once(50, lambda _: api.post("/snapshot", {"uid": "alice"}))
    assert {a.status_code for a in answers} == {201}
    assert {a.json()["id"] for a in answers} == set(stored(api))
    assert len(stored(api)) == 1
    assert ask(source, "SELECT count(*) FROM coldstore.runs") == [(1,)]


def test_who_asks_while_it_is_under_way_shares_it(api, source):
    with ThreadPoolExecutor(10) as pool:
        with held(source):
            waiting = [pool.submit(api.post, "/snapshot", {"uid": "alice"}) for _ in range(5)]
            wait_until(lambda: api.service.jobs.alive == 1)
            waiting += [pool.submit(api.post, "/snapshot", {"uid": "alice"}) for _ in range(5)]
            late = api.post("/snapshot", {"uid": "alice"}, Prefer="respond-async").json()["run"]
        answers = [w.result() for w in waiting]
    assert len({a.json()["id"] for a in answers}) == 1
    assert ask(source, "SELECT id::text FROM coldstore.runs") == [(late,)]


def test_what_differs_is_not_shared(api, source):
    bodies = [{"uid": "alice"}, {"uid": "bob"}, {"workspace": "red"}, {}, {"uid": "alice", "label": "a"}, {"uid": "alice", "label": "b"}]
    answers = at_once(len(bodies), lambda n: api.post("/snapshot", bodies[n]))
    assert {a.status_code for a in answers} == {201}
    assert len(stored(api)) == len(bodies)


def test_one_after_the_other_are_two(api):
    assert api.post("/snapshot", {"uid": "alice"}).json()["id"] != api.post("/snapshot", {"uid": "alice"}).json()["id"]
    assert len(stored(api)) == 2


def test_one_of_everybody_that_takes_long_keeps_no_user_waiting(source, tmp_path):
    run(source, SLOW)
    with served(source, tmp_path, tiers={"slow": {"table": "slow"}}, server_parallel=1, server_stop_seconds=0) as api:
        for _ in range(3):  # more than may run at a time
            assert api.post("/snapshot", {"label": str(_)}, Prefer="respond-async").status_code == 202
        answer = api.post("/snapshot", {"uid": "bob"})
        assert answer.status_code == 201
    assert stored(api) == [answer.json()["id"]]  # the others were given up when the server ended
    assert {state for (state,) in ask(source, "SELECT state FROM coldstore.runs WHERE scope = 'all'")} == {"failed"}


# --- sent again --------------------------------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_answer(api):
    first, again = (api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one") for _ in range(2))
    assert (first.status_code, first.json(), first.headers["location"]) == (again.status_code, again.json(), again.headers["location"])
    assert len(stored(api)) == 1
    assert api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="two").json() != first.json()


def test_the_same_key_with_another_request(api):
    api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one")
    problem(api.post("/snapshot", {"uid": "bob"}, Idempotency_Key="one"), 422, "IdempotencyKeyReused")
    assert len(stored(api)) == 1


def test_sent_again_while_it_is_under_way(api, source):
    with ThreadPoolExecutor(2) as pool:
        with held(source):
            first = pool.submit(api.post, "/snapshot", {"uid": "alice"}, Idempotency_Key="one")
            wait_until(lambda: api.service.jobs.alive == 1)
            again = pool.submit(api.post, "/snapshot", {"uid": "alice"}, Idempotency_Key="one")
        assert first.result().json() == again.result().json()
    assert len(stored(api)) == 1


def test_many_at_once_under_one_key(api):
    answers = at_once(20, lambda _: api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one"))
    assert len({a.json()["id"] for a in answers}) == len(stored(api)) == 1


def test_sent_again_after_a_restart(source, tmp_path):
    with served(source, tmp_path) as before:
        first = before.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one")
    with served(source, tmp_path) as after:
        again = after.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one")
        assert (again.status_code, again.json(), again.headers["location"]) == (201, first.json(), first.headers["location"])
        problem(after.post("/snapshot", {"uid": "bob"}, Idempotency_Key="one"), 422, "IdempotencyKeyReused")
        assert len(stored(after)) == 1


def test_sent_again_to_another_process(source, tmp_path):
    with served(source, tmp_path) as here, served(source, tmp_path) as there, ThreadPoolExecutor(2) as pool:
        with held(source):
            first = pool.submit(here.post, "/snapshot", {"uid": "alice"}, Idempotency_Key="one")
            wait_until(lambda: ask(source, "SELECT FROM coldstore.runs"))
            early = there.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one", Prefer="respond-async")
            again = pool.submit(there.post, "/snapshot", {"uid": "alice"}, Idempotency_Key="one")
        assert again.result().json() == first.result().json()
        assert early.json()["run"] == here.get("/runs").json()["runs"][0]["id"]
        assert len(stored(here)) == 1


def test_a_key_belongs_to_its_caller(source, tmp_path):
    more = f"boss:admin:{ADMIN},other:admin:another-key-of-16,viewer:read:{READ}"
    with served(source, tmp_path, api_keys=more) as api:
        one = api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one")
        two = api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one", x_api_key="another-key-of-16")
        assert (one.status_code, two.status_code) == (201, 201)
        assert one.json()["id"] != two.json()["id"]


def test_what_failed_is_tried_again(api, source):
    problem(api.post("/snapshot", {"uid": "carol"}, Idempotency_Key="one"), 404, "NotFound")
    remember(source, "carol")
    assert api.post("/snapshot", {"uid": "carol"}, Idempotency_Key="one").status_code == 201


def test_one_that_looks_wrong_is_not_stored_twice(source, tmp_path):
    with served(source, tmp_path) as api:
        shrink(api, source, "alice")
        first = problem(api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one"), 409, "SuspectSnapshot")
        again = problem(api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one"), 409, "SuspectSnapshot")
    with served(source, tmp_path) as api:
        later = problem(api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one"), 409, "SuspectSnapshot")
        assert first["snapshot"] == again["snapshot"] == later["snapshot"]
        assert len(stored(api)) == 2


def test_no_key_of_a_client_is_kept(api, source):
    api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="guessable-secret-of-a-client")
    assert "guessable" not in str(ask(source, "SELECT details FROM coldstore.runs"))
    assert "idempotency" not in api.get("/runs").json()["runs"][0]["details"]


def test_without_a_list_of_runs_it_is_remembered_while_the_server_lives(database, tmp_path):
    remember(database, "alice")
    with served(database, tmp_path) as api:
        first, again = (api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one") for _ in range(2))
        assert first.status_code == 201
        assert first.json() == again.json()


def test_where_nobody_can_know_whether_it_was_asked_before(source, tmp_path):
    with served(source, tmp_path, runs_url=source.replace("test_", "no_such_")) as api:
        problem(api.post("/snapshot", {"uid": "alice"}, Idempotency_Key="one"), 503, "DatabaseUnreachable")
        assert api.post("/snapshot", {"uid": "alice"}).status_code == 201
        assert len(stored(api)) == 1


@pytest.mark.parametrize("key", ["", "with blanks", "x" * 256])
def test_a_key_that_is_none(api, key):
    problem(api.post("/snapshot", {"uid": "alice"}, Idempotency_Key=key), 422, "InvalidRequest")
    assert stored(api) == []


def test_incrementals(api: Served, source):
    """Never a full one in its place, unless that was asked for."""
    api.post("/snapshot", {"uid": "alice"})
    problem(api.post("/snapshot", {"uid": "alice", "kind": "incremental"}), 409, "ChainRefused")
    record_changes(source)
    full = api.post("/snapshot", {"uid": "alice", "kind": "incremental", "autoFull": True})
    assert (full.status_code, full.json()["kind"]) == (201, "full")
    unchanged = api.post("/snapshot", {"uid": "alice", "kind": "incremental"})
    assert (unchanged.status_code, unchanged.json()) == (200, {"id": None, "unchanged": True, "parent": full.json()["id"]})
    run(source, "DELETE FROM daily_memories WHERE uid = 'alice' AND date = (SELECT max(date) FROM daily_memories)")
    link = api.post("/snapshot", {"uid": "alice", "kind": "incremental"})
    assert (link.status_code, link.json()["kind"], link.json()["rows"]["deleted"]) == (201, "incremental", 1)
    assert link.json()["id"] in stored(api)
    assert len(stored(api)) == 3
