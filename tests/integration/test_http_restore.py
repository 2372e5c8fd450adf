"""Restore and verify over HTTP: into databases that the configuration names, and nowhere else."""

from __future__ import annotations

import threading

import httpx
import pytest

from tests.integration.helpers import ask, run
from tests.integration.served import AT, Served, remember, served, wait_until, with_list

MEMORY = "SELECT uid, count(*) FROM daily_memories GROUP BY uid ORDER BY uid"


@pytest.fixture
def source(database) -> str:
    remember(database, "alice", "bob")
    return with_list(database)


@pytest.fixture
def target(make_database) -> str:
    return make_database(empty=True)


@pytest.fixture
def api(source, target, tmp_path):
    with served(source, tmp_path, server_targets={"scratch": target, "home": source}) as found:
        yield found


def taken(api: Served, **body: object) -> dict:
    done = api.post("/snapshot", body)
    assert done.status_code == 201, done.text
    return done.json()


def refused(done: httpx.Response, status: int, code: str) -> dict:
    assert (done.status_code, done.json()["type"]) == (status, f"urn:coldstore:error:{code}"), done.text
    assert done.headers["content-type"] == "application/problem+json"
    return done.json()


# --- restore -----------------------------------------------------------------------------------------------------------------------


def test_everybody_comes_back(api, source, target):
    info = taken(api)
    done = api.post("/restore", {"target": "scratch"})
    assert done.status_code == 200, done.text
    told = done.json()
    assert (told["id"], told["verified"], told["dryRun"], told["mode"]) == (info["id"], "content", False, "fresh")
    assert told["rows"] == info["rows"]
    assert ask(target, MEMORY) == ask(source, MEMORY)
    rows = ask(source, "SELECT trigger, state, snapshot_id, details ->> 'target' FROM coldstore.runs WHERE kind = 'restore'")
    assert [row[:3] for row in rows] == [("http", "succeeded", info["id"])]


def test_a_dry_run_tells_the_plan_and_changes_nothing(api, source, target):
    info = taken(api)
    done = api.post("/restore", {"snapshot": info["id"], "target": "scratch", "dryRun": True})
    assert done.status_code == 200
    told = done.json()
    assert (told["dryRun"], told["verified"], told["rows"]["daily_memories"]) == (True, None, 6)
    assert {t["action"] for t in told["tables"]} == {"create"}
    assert ask(target, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_one_user_comes_back_among_the_others(api, source):
    taken(api, label="tuesday")
    taken(api)
    run(source, "DELETE FROM daily_memories WHERE uid = 'alice' AND date > '2026-01-02'", "DELETE FROM daily_memories WHERE uid = 'bob'")
    body = {"label": "tuesday", "uid": "alice", "target": "home", "mode": "replace"}
    done = api.post("/restore", body)
    assert done.status_code == 200, done.text
    assert done.json()["uid"] == "alice"
    assert ask(source, MEMORY) == [("alice", 3)]


def test_merge_and_its_conflicts(api, source):
    taken(api)
    run(source, "DELETE FROM daily_memories WHERE uid = 'bob'", "UPDATE daily_memories SET entries = '[1]'")
    body = {"target": "home", "mode": "merge"}
    refused(api.post("/restore", body), 409, "RestoreConflict")
    assert ask(source, MEMORY) == [("alice", 3)]
    done = api.post("/restore", body | {"onConflict": "skip", "tiers": ["daily_memories"]})
    assert done.status_code == 200, done.text
    assert [t["skipped"] for t in done.json()["tables"]] == [3]
    assert ask(source, MEMORY) == [("alice", 3), ("bob", 3)]


def test_a_target_that_has_rows_is_left_alone(api, source):
    taken(api)
    told = refused(api.post("/restore", {"target": "home"}), 409, "TargetNotEmpty")
    assert told["hint"]
    assert [row[0] for row in ask(source, "SELECT state FROM coldstore.runs WHERE kind = 'restore'")] == ["failed"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"target": ""},
        {"target": 5},
        {"target": "scratch", "mode": "fast"},
        {"target": "scratch", "onConflict": "ask"},
        {"target": "scratch", "uid": "a", "workspace": "b"},
        {"target": "scratch", "snapshot": "x", "label": "y"},
        {"target": "scratch", "latest": True, "label": "y"},
        {"target": "scratch", "dryRun": "yes"},
        {"target": "scratch", "dry_run": True},
        {"target": "scratch", "to": "postgresql://elsewhere/db"},
        {"target": "scratch", "tiers": "daily_memories"},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(api, target, body):
    refused(api.post("/restore", body), 422, "InvalidRequest")
    assert ask(target, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_no_address_of_a_request_is_ever_used(api, target):
    taken(api)
    told = refused(api.post("/restore", {"target": target}), 404, "NotFound")
    assert "[server.targets]" in told["hint"]
    assert "scratch" not in str(told)  # nor is it told which there are
    assert ask(target, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_what_is_not_there_is_not_restored(api):
    refused(api.post("/restore", {"target": "scratch"}), 404, "NotFound")
    refused(api.post("/restore", {"target": "scratch", "snapshot": "memory-all-1"}), 404, "NotFound")
    taken(api)
    refused(api.post("/restore", {"target": "scratch", "uid": "nobody"}), 404, "NotFound")
    refused(api.post("/restore", {"target": "scratch", "tiers": ["nothing"]}), 404, "NotFound")


def test_who_may_only_read_restores_nothing(api, target):
    taken(api)
    for path in ("/restore", "/verify"):
        refused(api.reader.post(AT + path, json={"target": "scratch"}), 403, "Forbidden")
    assert ask(target, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_a_restore_that_lasts_is_a_run_to_look_at(api, target):
    info = taken(api)
    done = api.post("/restore", {"target": "scratch"}, Prefer="respond-async")
    assert done.status_code == 202
    assert done.headers["location"] == done.json()["url"]
    wait_until(lambda: api.client.get(done.json()["url"]).json()["state"] not in {"queued", "running"})
    told = api.client.get(done.json()["url"]).json()
    assert (told["kind"], told["state"], told["snapshotId"]) == ("restore", "succeeded", info["id"])
    assert len(ask(target, MEMORY)) == 2


def test_a_password_of_a_target_is_never_told(source, tmp_path):
    with served(source, tmp_path, server_targets={"away": "postgresql://me:hiddenWord-7f3a@127.0.0.1:1/x"}) as api:
        taken(api)
        told = refused(api.post("/restore", {"target": "away"}), 503, "DatabaseUnreachable")
        assert "hiddenWord" not in str(told)
        assert "hiddenWord" not in api.get("/runs").text
        assert "hiddenWord" not in str(ask(source, "SELECT runs::text FROM coldstore.runs"))


# --- verify ------------------------------------------------------------------------------------------------------------------------


def damage(api: Served, info: dict) -> None:
    path = api.folder / info["path"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_one_all_or_those_since_a_day(api):
    one, two = taken(api, uid="alice"), taken(api)
    (api.folder / "snapshots" / "stray.txt").write_text("x")
    everything = api.post("/verify", {"all": True, "deep": True}).json()
    assert everything["ok"]
    assert everything["checked"] == 2
    assert everything["states"] == {"ok": 2}
    assert {r["id"] for r in everything["results"]} == {one["id"], two["id"]}
    assert all(r["framesRead"] for r in everything["results"])
    assert everything["orphans"] == ["snapshots/stray.txt"]
    single = api.post("/verify", {"snapshot": one["id"]}).json()
    assert [r["id"] for r in single["results"]] == [one["id"]]
    assert single["orphans"] == []
    assert api.post("/verify", {"since": one["snapshotAt"][:10]}).json()["checked"] == 2
    sampled = api.post("/verify", {"all": True, "sample": 1.0, "seed": 7}).json()
    assert (sampled["sample"], sampled["seed"]) == (1.0, 7)


def test_damage_stands_in_the_answer_and_in_the_run(api, source):
    good, bad = taken(api, uid="alice"), taken(api, uid="bob")
    damage(api, bad)
    assert api.post("/verify", {"all": True}).json()["ok"]  # its size is right
    done = api.post("/verify", {"all": True, "deep": True})
    assert done.status_code == 200
    told = done.json()
    assert (told["ok"], told["states"]) == (False, {"ok": 1, "damaged": 1})
    assert [r["id"] for r in told["results"]] == [bad["id"], good["id"]]  # what is wrong stands first
    assert told["results"][0]["problems"]
    states = ask(source, "SELECT state, error FROM coldstore.runs WHERE kind = 'verify' ORDER BY started_at")
    assert [s for s, _ in states] == ["succeeded", "failed"]
    assert "VerifyFailed" in states[1][1]


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"all": False}, {"all": True, "since": "2026-01-01"}, {"since": "yesterday"}, {"all": True, "deep": True, "sample": 0.5}),
        *({"all": True, "sample": 0}, {"all": True, "sample": 2}, {"snapshot": ""}, {"all": True, "quick": True}),
    ],
)
def test_a_verify_that_makes_no_sense_is_refused(api, body):
    refused(api.post("/verify", body), 422, "InvalidRequest")


def test_all_of_nothing_is_not_called_whole(api):
    refused(api.post("/verify", {"all": True}), 404, "NotFound")
    refused(api.post("/verify", {"snapshot": "memory-all-1"}), 404, "NotFound")


def test_the_same_verify_at_the_same_time_is_one_run(api, source):
    taken(api)
    answers: list[dict] = []

    def ask_for_it() -> None:
        answers.append(
            httpx.post(f"{api.url}{AT}/verify", json={"all": True, "deep": True}, headers=api.client.headers, timeout=None).json()
        )

    threads = [threading.Thread(target=ask_for_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert all(a == answers[0] for a in answers)
    (count,) = ask(source, "SELECT count(*) FROM coldstore.runs WHERE kind = 'verify'")[0]
    assert count < 8
