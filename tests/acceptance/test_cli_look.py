"""`doctor` and `status`: what a person and a program get to see, and with which exit code."""

from __future__ import annotations

import re
import signal

import pytest

from coldstore.storage.open import open_store
from tests.acceptance.conftest import take
from tests.acceptance.program import check_refusal, ended, execute, files, wait_until

CONFIG, DOCTOR = 2, 14
NO_DATABASE = {"DATABASE_URL": None}


def test_all_is_well(cold, memory):
    told = cold("doctor", env={"DATABASE_URL": memory})
    lines = told.out.splitlines()
    assert re.fullmatch(r"\d+ checked, 0 failed, 0 with a warning, \d+ skipped", lines[-1])
    assert all(re.fullmatch(r"[\w:,' -]+?  +(ok|skipped) +\S.*", line) for line in lines[:-1]), lines
    assert told.err == ""
    found = cold("doctor", "--json", env={"DATABASE_URL": memory}).json
    assert found["state"] == "ok"
    assert [set(c) for c in found["checks"]] == [{"name", "state", "detail", "hint", "seconds"}] * (len(lines) - 1)
    assert files(cold.folder) == []


def test_a_broken_promise(cold, memory):
    execute(memory, "DROP TABLE graph_entities CASCADE")
    told = cold("doctor", env={"DATABASE_URL": memory}, code=DOCTOR)
    at = next(n for n, line in enumerate(told.out.splitlines()) if line.startswith("tier graph_entities"))
    assert " FAILED " in told.out.splitlines()[at]
    assert told.out.splitlines()[at + 1].strip().startswith("→ ")
    assert cold("doctor", "--json", env={"DATABASE_URL": memory}, code=DOCTOR).json["state"] == "failed"
    assert cold("doctor", "--store-only", env={"DATABASE_URL": memory}).err == ""


def test_a_warning_is_no_failure(cold):
    told = cold("doctor", "--json", env={"COLD_STORE_RETAIN_DAYS": "3"})
    assert told.json["state"] == "warning"


def test_halves(cold, memory):
    names = {
        option: {c["name"].partition(":")[0] for c in cold("doctor", option, "--json", env={"DATABASE_URL": memory}).json["checks"]}
        for option in ("--store-only", "--database-only")
    }
    assert "store" in names["--store-only"]
    assert "database" not in names["--store-only"]
    assert "database" in names["--database-only"]
    assert "store" not in names["--database-only"]
    cold.refused("doctor", "--store-only", "--database-only", code=CONFIG, error="ConfigError")
    cold("doctor", "--database-only", code=DOCTOR)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_in_its_middle_leaves_nothing(started, weed, weed_faults, number):
    """The store keeps it waiting for an answer about a large object."""
    weed_faults.add("stall", method="GET", match="/large$", seconds=30)
    url = weed.url()
    env = {**weed.env, "AWS_ENDPOINT_URL": weed_faults.url}
    process = started.start("doctor", "--store-only", "--json", "--store", url, env=env)
    wait_until(lambda: weed_faults.count("PUT .*/raced"), process=process)
    with open_store(url, **weed.arguments()).create("bystander") as out:
        out.write(b"x")
    process.send_signal(number)
    check_refusal(ended(process), code=128 + number, error="Interrupted")
    assert [o.key for o in open_store(url, **weed.arguments()).list()] == ["bystander"]


def test_a_configuration_that_cannot_be_read(cold):
    (cold.folder / "coldstore.toml").write_text("[stoer]\n")
    cold.refused("doctor", code=CONFIG, error="ConfigError")


def test_status(cold, stored):
    take(stored.url, stored.folder, uid="uid_alice")
    before = files(cold.folder)
    told = cold("status")
    assert re.search(r"^snapshots +2; 0 sealed, 0 signed, 0 under retention$", told.out, re.MULTILINE)
    assert re.search(r"^newest of everybody +memory-all-\d+, \d+ minutes ago$", told.out, re.MULTILINE)
    assert re.search(r"^last proven +never$", told.out, re.MULTILINE)
    assert re.search(r"^daily_memories +6 ", told.out, re.MULTILINE)
    assert "estimate" not in told.out
    found = cold("status", "--json").json
    assert (found["snapshots"], found["objects"], found["newest"]["id"]) == (2, 6, stored.info.id)
    assert {k: v["scopes"] for k, v in found["scopes"].items()} == {"all": 1, "uid": 1, "workspace": 0}
    assert files(cold.folder) == before


def test_status_of_nothing(cold):
    assert cold("status", "--json").json["snapshots"] == 0
    assert re.search(r"^newest of everybody +there is none$", cold("status").out, re.MULTILINE)


def test_prices(cold, stored, weed):
    (cold.folder / "coldstore.toml").write_text("[status]\nprice_gb_month = 1000000000\nprice_1k_put = 0\nprice_1k_get = 0\n")
    arguments = ["--store", weed.url()]
    env = {**weed.env, "DATABASE_URL": stored.url}
    cold("snapshot", "--all", *arguments, env=env)
    found = cold("status", *arguments, "--json", env=env).json
    assert found["cost"]["total"] == pytest.approx(found["bytes"])
    assert re.search(r"^estimate +\$[\d,.]+ a month", cold("status", *arguments, env=env).out, re.MULTILINE)
    (cold.folder / "coldstore.toml").write_text("[status]\nprice_gb_month = -1\n")
    cold.refused("status", code=CONFIG, error="ConfigError")
