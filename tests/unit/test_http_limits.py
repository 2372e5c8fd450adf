"""How much a caller of the HTTP API may ask, and what every error of ours becomes there."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from coldstore import errors
from coldstore.errors import ColdStoreError
from coldstore.http.asking import Preferences
from coldstore.http.limits import Rate, read_body, replayed
from coldstore.http.problems import RESPONSES, Problem, problem_of


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# --- rate --------------------------------------------------------------------------------------------------------------------------


def test_a_burst_and_then_one_by_one():
    clock = Clock()
    rate = Rate(2.0, 3, clock=clock)
    assert [rate.take("a") for _ in range(3)] == [0.0] * 3
    assert rate.take("a") == pytest.approx(0.5)
    clock.now = 0.5
    assert rate.take("a") == 0.0
    assert rate.take("a") == pytest.approx(0.5)


def test_each_key_has_its_own():
    rate = Rate(1.0, 1, clock=Clock())
    assert (rate.take("a"), rate.take("b")) == (0.0, 0.0)
    assert rate.take("a") > 0


def test_zero_is_no_limit():
    rate = Rate(0.0, 1, clock=Clock())
    assert {rate.take("a") for _ in range(100)} == {0.0}


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.5, 50), st.integers(1, 10))
def test_never_more_than_it_may(pauses, per_second, burst):
    clock = Clock()
    rate = Rate(per_second, burst, clock=clock)
    taken = 0
    for pause in pauses:
        clock.now += pause
        taken += rate.take("a") == 0.0
    assert taken <= burst + clock.now * per_second + 1e-6


def test_who_waits_as_long_as_told_is_let_in():
    clock = Clock()
    rate = Rate(3.0, 1, clock=clock)
    rate.take("a")
    clock.now += rate.take("a") + 1e-9
    assert rate.take("a") == 0.0


# --- bodies ------------------------------------------------------------------------------------------------------------------------


def receiving(*messages):
    waiting = list(messages)

    async def receive():
        return waiting.pop(0)

    return receive


def part(body: bytes, *, more: bool = True):
    return {"type": "http.request", "body": body, "more_body": more}


def read(receive, *, limit=10, headers=None):
    return asyncio.run(read_body(receive, Headers(headers or {}), limit=limit))


def test_a_body_in_parts_is_one_body():
    assert read(receiving(part(b"abc"), part(b"def", more=False))) == b"abcdef"


def test_one_that_is_as_long_as_it_may_be():
    assert read(receiving(part(b"x" * 10, more=False))) == b"x" * 10


@pytest.mark.parametrize("messages", [[part(b"x" * 11, more=False)], [part(b"x" * 6), part(b"y" * 6)]])
def test_too_long_is_refused_without_reading_on(messages):
    with pytest.raises(Problem) as caught:
        read(receiving(*messages))
    assert (caught.value.status, caught.value.headers["Connection"]) == (413, "close")


def test_one_that_says_so_is_not_read_at_all():
    with pytest.raises(Problem, match="10 bytes"):
        read(receiving(), headers={"content-length": "11"})


def test_a_caller_that_goes_away():
    assert read(receiving(part(b"abc"), {"type": "http.disconnect"})) is None


def test_what_was_read_is_handed_over_once():
    async def both():
        receive = replayed(b"abc", receiving({"type": "http.disconnect"}))
        return [await receive(), await receive()]

    assert [m["type"] for m in asyncio.run(both())] == ["http.request", "http.disconnect"]


# --- problems ----------------------------------------------------------------------------------------------------------------------


def classes(base=ColdStoreError):
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
            yield from classes(kind)


@pytest.mark.parametrize("kind", list(classes()), ids=lambda k: k.__name__)
def test_every_error_is_a_problem_with_its_name(kind):
    problem = problem_of(kind("what happened", hint="what to do"))
    assert problem.status in RESPONSES
    body = problem.body()
    assert body["type"] == f"urn:coldstore:error:{kind.__name__}"
    assert (body["detail"], body["hint"], body["status"]) == ("what happened", "what to do", problem.status)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotFound("x"), 404),
        (errors.ObjectLocked("x"), 409),
        (errors.TargetNotEmpty("x"), 409),
        (errors.SuspectSnapshot("x"), 409),
        (errors.DatabaseUnreachable("x"), 503),
        (errors.StoreUnavailable("x"), 503),
        (errors.PermissionDenied("x"), 502),
        (errors.AccessDenied("x"), 502),
        (errors.StoreFull("x"), 507),
        (errors.CorruptDocument("x"), 500),
        (errors.ConfigError("x"), 500),
    ],
    ids=lambda v: getattr(v, "code", v),
)
def test_whose_fault_it_is_stands_in_the_status(error, status):
    problem = problem_of(error)
    assert problem.status == status
    assert ("Retry-After" in problem.headers) == (status == 503)


def test_of_a_defect_nothing_is_told():
    body = problem_of(RuntimeError("postgresql://u:hush@h/db at /srv/secret.py")).body()
    assert body["status"] == 500
    assert not {"hush", "secret", "RuntimeError"} & set(str(body).replace("/", " ").replace(":", " ").split())


# --- preferences -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", 30.0),
        ("respond-async", 0.0),
        ("wait=5", 5.0),
        ("respond-async, wait=5", 5.0),
        ('WAIT="7"', 7.0),
        ("wait=5, wait=9", 5.0),
        ("return=minimal, respond-async", 0.0),
        ("wait=soon", 30.0),
        ("wait", 30.0),
        ("wait=999999", 3600.0),
        (";;;,,=", 30.0),
    ],
)
def test_what_a_caller_prefers(header, seconds):
    assert Preferences.of(header).seconds(30.0) == seconds


def test_what_was_honoured_is_told():
    assert Preferences.of("respond-async").applied(early=True) == {"Preference-Applied": "respond-async"}
    assert Preferences.of("respond-async").applied(early=False) == {}
    assert Preferences.of("wait=3").applied(early=False) == {"Preference-Applied": "wait=3"}
    assert Preferences.of("nonsense").applied(early=True) == {}
