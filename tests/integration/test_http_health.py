"""Whether the server lives, whether it can work, and what it tells Prometheus."""

from __future__ import annotations

import re
import secrets
import socket
import threading
import time
from contextlib import closing
from datetime import UTC, datetime

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg import sql

from coldstore.http.readiness import Readiness
from coldstore.postgres.runs import RunLog
from tests.integration.helpers import run
from tests.integration.served import AT, Served, held, remember, served, wait_until, with_list


@pytest.fixture
def source(database) -> str:
    remember(database, "alice", "bob")
    return with_list(database)


@pytest.fixture
def api(source, tmp_path):
    with served(source, tmp_path) as found:
        yield found


def keyless(api: Served, path: str) -> httpx.Response:
    return httpx.get(api.url + path, timeout=None)


# --- alive and ready ---------------------------------------------------------------------------------------------------------------


def test_alive_and_ready_need_no_key(api):
    for path in ("/healthz", "/readyz"):
        found = keyless(api, path)
        assert (found.status_code, found.json()) == (200, {"status": "ok"})


def set_open(url: str, *, allowed: bool) -> None:
    """Let nobody into the database, or everybody again."""
    name = url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(url, dbname="postgres", autocommit=True) as conn:
        conn.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(sql.Identifier(name), sql.SQL(str(allowed))))
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))


def test_a_database_that_is_away_is_noticed_and_so_is_its_return(api, source):
    set_open(source, allowed=False)
    try:
        found = keyless(api, "/readyz")
        assert found.status_code == 503
        told = found.json()
        assert told["type"] == "urn:coldstore:error:NotReady"
        assert found.headers["retry-after"]
        assert "database" not in str(told)  # which part, is nobody's business without a key
        assert keyless(api, "/healthz").status_code == 200
        text = api.client.get("/metrics").text
        assert 'coldstore_ready{part="database"} 0.0' in text
        assert 'coldstore_ready{part="store"} 1.0' in text
    finally:
        set_open(source, allowed=True)
    wait_until(lambda: keyless(api, "/readyz").status_code == 200)


def test_a_store_that_is_away_is_noticed(source, tmp_path, weed, weed_faults):
    url = f"s3://{weed.bucket}/{secrets.token_hex(4)}"
    settings = {**weed.arguments(endpoint_url=weed_faults.url), "url": url}
    with served(source, tmp_path, **settings) as api:
        assert keyless(api, "/readyz").status_code == 200  # an empty store answers
        weed_faults.add("status", status=403, count=None)
        wait_until(lambda: keyless(api, "/readyz").status_code == 503)
        assert 'coldstore_ready{part="store"} 0.0' in api.client.get("/metrics").text
        weed_faults.clear()
        wait_until(lambda: keyless(api, "/readyz").status_code == 200)


def test_nobody_waits_for_a_database_that_never_answers(source, tmp_path):
    """It takes connections and says nothing. A hundred ask, and it is called once."""
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def count() -> None:
            while True:
                try:
                    calls.append(silent.accept())
                except OSError:
                    return

        threading.Thread(target=count, daemon=True).start()
        away = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/x?connect_timeout=3600&sslmode=disable&gssencmode=disable"
        with served(away, tmp_path, runs_log="off") as api:
            found: list[int] = []
            threads = [threading.Thread(target=lambda: found.append(keyless(api, "/readyz").status_code)) for _ in range(100)]
            for thread in threads:
                thread.start()
            assert keyless(api, "/healthz").status_code == 200
            for thread in threads:
                thread.join()
            assert found == [503] * 100
            assert len(calls) == 1
            calls[0][0].close()
        silent.close()


def test_a_server_that_is_being_stopped_is_not_ready(api, source):
    with held(source):
        assert api.post("/snapshot", {"uid": "alice"}, Prefer="respond-async").status_code == 202
        assert keyless(api, "/readyz").status_code == 200
        api.service.jobs.stop()
        assert keyless(api, "/readyz").status_code == 503


def test_an_answer_counts_for_some_seconds():
    """By a clock of the test's own: one call for many looks, and a new one when it is old."""
    now, calls = [0.0], []
    readiness = Readiness({"it": lambda: calls.append(now[0])}, clock=lambda: now[0])
    try:
        for _ in range(20):
            assert readiness.parts() == {"it": True}
        assert calls == [0.0]
        now[0] = 4.9
        assert readiness.parts() == {"it": True}
        now[0] = 5.0
        assert readiness.parts() == {"it": True}
        assert calls == [0.0, 5.0]
    finally:
        readiness.close()


def test_a_defect_of_a_probe_is_not_readiness():
    def broken() -> None:
        raise ZeroDivisionError

    readiness = Readiness({"it": broken, "other": lambda: None})
    try:
        assert readiness.parts() == {"it": False, "other": True}
    finally:
        readiness.close()


# --- metrics -----------------------------------------------------------------------------------------------------------------------


def samples(api: Served) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = api.reader.get("/metrics")
    assert found.status_code == 200
    families = text_string_to_metric_families(found.text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(api: Served, name: str, **labels: str) -> float | None:
    return samples(api).get((name, tuple(sorted(labels.items()))))


def test_metrics_need_a_key_unless_they_are_opened(source, tmp_path, api):
    refused = keyless(api, "/metrics")
    assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
    assert api.reader.get("/metrics").headers["content-type"].startswith("text/plain")
    with served(source, tmp_path / "other", server_open_metrics=True) as opened:
        assert keyless(opened, "/metrics").status_code == 200


def test_what_ended_well_is_told_with_its_age_and_size(api):
    assert value(api, "coldstore_last_success_timestamp_seconds", kind="snapshot", scope="everybody") is None
    api.service.metrics._listed = None  # a list that was just asked is not asked again for some seconds
    info = api.post("/snapshot").json()
    api.post("/snapshot", {"uid": "alice"})
    api.post("/snapshot", {"workspace": "red"})
    api.post("/verify", {"all": True})
    now = time.time()
    found = samples(api)
    for kind, scope in (("snapshot", "everybody"), ("snapshot", "users"), ("snapshot", "workspaces"), ("verify", "everybody")):
        labels = (("kind", kind), ("scope", scope))
        assert now - 60 < found["coldstore_last_success_timestamp_seconds", labels] <= now + 1
        assert 0 <= found["coldstore_last_success_age_seconds", labels] < 60
        assert found["coldstore_last_success_bytes", labels] > 0
        assert found["coldstore_runs_total", (("kind", kind), ("scope", scope), ("state", "succeeded"))] == 1
        assert found["coldstore_run_seconds_count", labels] == 1
    assert found["coldstore_last_success_bytes", (("kind", "snapshot"), ("scope", "everybody"))] == info["bytes"]


def test_what_another_process_did_is_told_too(api, source):
    run(
        source,
        "INSERT INTO coldstore.runs (kind, trigger, state, started_at, finished_at, bytes)"
        " VALUES ('snapshot', 'cli', 'succeeded', '2026-01-01Z', '2026-01-01T00:00:07Z', 5),"
        " ('snapshot', 'cli', 'succeeded', '2026-01-02Z', '2026-01-02T00:00:07Z', 77),"
        " ('snapshot', 'cli', 'failed', '2026-01-03Z', '2026-01-03T00:00:07Z', 9)",
        "INSERT INTO coldstore.runs (kind, trigger) VALUES ('restore', 'cli'), ('restore', 'schedule')",
    )
    found = samples(api)
    labels = (("kind", "snapshot"), ("scope", "everybody"))
    assert found["coldstore_last_success_timestamp_seconds", labels] == 1767312007
    assert found["coldstore_last_success_bytes", labels] == 77
    assert found["coldstore_runs_in_progress", (("kind", "restore"),)] == 2


def test_failures_are_told_by_their_code(api):
    for _ in range(2):
        assert api.post("/snapshot", {"uid": "nobody"}).status_code == 404
    assert api.post("/verify", {"all": True}).status_code == 404
    assert value(api, "coldstore_run_failures_total", kind="snapshot", code="NotFound") == 2
    assert value(api, "coldstore_runs_total", kind="snapshot", scope="users", state="failed") == 2
    assert value(api, "coldstore_run_failures_total", kind="verify", code="NotFound") == 1


def test_what_is_under_way_is_told(api, source):
    with held(source):
        accepted = api.post("/snapshot", Prefer="respond-async").json()["url"]
        wait_until(lambda: api.client.get(accepted).json()["state"] == "running")
        assert value(api, "coldstore_runs_in_progress", kind="snapshot") == 1
    wait_until(lambda: api.client.get(accepted).json()["state"] == "succeeded")
    api.service.metrics._listed = None
    assert not value(api, "coldstore_runs_in_progress", kind="snapshot")


def test_without_a_list_of_runs_the_store_is_asked(database, tmp_path):
    remember(database, "alice")
    with served(database, tmp_path) as api:
        api.post("/snapshot")
        own = value(api, "coldstore_last_success_timestamp_seconds", kind="snapshot", scope="everybody")
        assert own is not None
    with served(database, tmp_path) as api:  # which took none itself
        there = value(api, "coldstore_last_success_timestamp_seconds", kind="snapshot", scope="everybody")
        assert there is not None
        assert abs(own - there) < 60


def test_requests_are_counted_by_route_and_never_by_address(api):
    made = api.post("/snapshot", {"uid": "alice"}).json()["id"]
    for path in (f"/snapshots/{made}", "/snapshots/memory-all-1", "/snapshots/memory-all-2"):
        api.get(path)
    for path in ("/nothing/here", "/nothing/there"):
        api.client.get(path)
    keyless(api, "/metrics")
    api.client.request("BREW", "/healthz")
    found = {key: v for key, v in samples(api).items() if key[0] == "coldstore_http_requests_total"}

    def count(method: str, route: str, status: int) -> float | None:
        return found.get(("coldstore_http_requests_total", (("method", method), ("route", route), ("status", str(status)))))

    assert count("GET", "/snapshots/{snapshot_id}", 200) == 1
    assert count("GET", "/snapshots/{snapshot_id}", 404) == 2
    assert count("GET", "none", 404) == 2
    assert count("GET", "none", 401) == 1
    assert count("POST", "/snapshot", 201) == 1
    assert not [key for key in found if "BREW" in str(key) or "memory-" in str(key)]


def test_the_number_of_series_does_not_grow_with_users(api, source):
    remember(source, *(f"user{n}" for n in range(12)))
    api.post("/snapshot", {"uid": "user0"})
    api.service.metrics._listed = None
    before = set(samples(api))
    for n in range(12):
        assert api.post("/snapshot", {"uid": f"user{n}"}).status_code == 201
    api.service.metrics._listed = None
    after = set(samples(api))
    assert {key for key in after - before if "/metrics" not in str(key)} == set()
    assert not re.search(r"user\d", str(after))


def test_metrics_answer_while_the_database_does_not(api, source):
    api.post("/snapshot")
    set_open(source, allowed=False)
    try:
        api.service.metrics._listed = None
        labels = {"kind": "snapshot", "scope": "everybody"}
        assert value(api, "coldstore_last_success_timestamp_seconds", **labels) is not None
        assert value(api, "coldstore_ready", part="database") == 0
    finally:
        set_open(source, allowed=True)


def test_openmetrics_is_spoken_where_it_is_asked_for(api):
    found = api.reader.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert found.headers["content-type"].startswith("application/openmetrics-text")
    assert found.text.rstrip().endswith("# EOF")


def test_the_pages_are_not_below_the_admin_address(api):
    for path in ("/healthz", "/readyz", "/metrics"):
        assert api.client.get(AT + path).status_code == 404


def test_figures_of_a_list_that_grows(source):
    """Only the first look reads all of it; what is later looked at must give the same."""

    def insert(state: str, began: str, ended: str | None, size: int, kind: str = "snapshot") -> None:
        end = f"'{ended}Z'" if ended else "NULL"
        run(
            source,
            "INSERT INTO coldstore.runs (kind, trigger, state, started_at, finished_at, bytes)"
            f" VALUES ('{kind}', 'cli', '{state}', '{began}Z', {end}, {size})",
        )

    with closing(RunLog(source)) as kept:

        def told() -> set[tuple[object, ...]]:
            with closing(RunLog(source)) as fresh:
                found, whole = ({(f.kind, f.scope, f.running, f.ended, f.bytes) for f in log.figures()} for log in (kept, fresh))
            assert found == whole
            return found

        assert told() == set()
        insert("succeeded", "2026-01-01", "2026-01-01T01:00", 1)
        insert("running", "2026-01-02", None, 0, kind="restore")
        assert {f[:3] for f in told()} == {("snapshot", "all", 0), ("restore", "all", 1)}
        insert("succeeded", "2026-01-03", "2026-01-03T01:00", 3)
        insert("succeeded", "2026-01-04", "2026-01-04T01:00", 4, kind="verify")
        assert {f[0]: f[4] for f in told()} == {"snapshot": 3, "restore": None, "verify": 4}
        # The long one ends after all, and something that began before the last look ends after it.
        run(source, "UPDATE coldstore.runs SET state = 'succeeded', finished_at = '2026-01-05Z', bytes = 9 WHERE state = 'running'")
        insert("failed", "2026-01-06", "2026-01-06T01:00", 5)
        assert {f[0]: f[2:] for f in told()}["restore"] == (0, datetime(2026, 1, 5, tzinfo=UTC).timestamp(), 9)
        insert("running", "2026-01-07", None, 0)
        assert {f[0]: f[2] for f in told()}["snapshot"] == 1
        run(source, "UPDATE coldstore.runs SET state = 'failed', finished_at = '2026-01-08Z' WHERE state = 'running'")
        assert {f[0]: f[2] for f in told()}["snapshot"] == 0
