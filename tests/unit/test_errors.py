"""The tree of errors is the one its module draws, and no password gets through `redact`."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstore import errors
from coldstore.errors import ColdStoreError, redact

BRANCH = re.compile(r"^    (?P<indent>[│ ]*)[├└]── (?P<name>\w+)(?: +(?P<code>\d+) )?")


def classes(base: type[ColdStoreError]) -> list[type[ColdStoreError]]:
    return [base, *(c for child in base.__subclasses__() for c in classes(child))]


def drawn() -> dict[str, tuple[str, int]]:
    """name → (parent, exit code) of the tree in the module's docstring."""
    path = [("ColdStoreError", 1)]
    found = {}
    for line in errors.__doc__.splitlines():
        match = BRANCH.match(line)
        if match:
            depth = 1 + len(match["indent"]) // 4
            parent, inherited = path[depth - 1]
            code = int(match["code"]) if match["code"] else inherited
            path[depth:] = [(match["name"], code)]
            found[match["name"]] = (parent, code)
    return found


def test_the_tree_is_the_one_that_is_drawn():
    defined = {c.__name__: (c.__mro__[1].__name__, c.exit_code) for c in classes(ColdStoreError)[1:] if c.__module__ == errors.__name__}
    assert drawn() == defined
    assert len(defined) > 20


def test_exit_codes_tell_the_branches_apart():
    codes = [c.exit_code for c in ColdStoreError.__subclasses__() if c.__module__ == errors.__name__]
    assert sorted(codes) == list(range(2, 2 + len(codes)))
    assert ColdStoreError.exit_code == 1


def test_what_a_program_gets():
    error = errors.TargetNotEmpty("the table has rows", hint="use --mode", op="publish", key="k")
    assert error.as_dict() == {
        "error": "TargetNotEmpty",
        "message": "the table has rows",
        "hint": "use --mode",
        "op": "publish",
        "key": "k",
        "exitCode": 7,
    }
    assert json.loads(json.dumps(error.as_dict())) == error.as_dict()
    assert (error.code, str(error)) == ("TargetNotEmpty", "the table has rows")
    assert ColdStoreError("x").hint is None


# --- redact ------------------------------------------------------------------------------------------------------------------------

MARK = "Zq7"
ends = st.text(st.sampled_from("abcXYZ019@/:?#[]!$&'()*+,;=%-._~\"\\`|^{}<>é"), max_size=6)
#: A password with a recognisable middle and anything but a space around it.
secrets = st.builds("{}{}{}".format, ends, st.just(MARK), ends)
names = st.sampled_from(["password", "PASSWORD", "sslpassword", "passwd", "PGPASSWORD", "db_password", "secret", "client_secret"]) | (
    st.sampled_from(
        ["token", "AWS_SESSION_TOKEN", "api_key", "x-api-key", "COLD_STORE_API_KEY", "AWS_SECRET_ACCESS_KEY", "secretAccessKey"]
    )
)


def assert_hidden(text: str, secret: str) -> None:
    # The ends may be too short to tell from the rest of the text; a tail or head of three characters with the mark is not.
    error = ColdStoreError(text, hint=f"Try {text} again")
    printed = json.dumps(error.as_dict(), ensure_ascii=False)
    assert MARK not in redact(text)
    assert MARK not in printed
    assert "***" in redact(text)
    tail = secret.rpartition(MARK)[2]
    if len(tail) >= 4:
        assert tail not in redact(text)


@settings(deadline=None)
@given(
    secrets,
    st.sampled_from(["postgresql", "postgres", "postgresql+asyncpg", "s3", "HTTPS", "redis"]),
    st.sampled_from(["", "alice", "al.ice%40corp", "alice@corp"]),
    st.sampled_from(["db.example:5432/memory", "/memory", "[::1]:5432/memory?sslmode=require", "bucket/prefix"]),
    st.sampled_from(["", "cannot connect to ", "url=", '"', "x_", "("]),
)
def test_a_url_never_shows_its_password(secret, scheme, user, rest, before):
    text = f"{before}{scheme}://{user}:{secret}@{rest}"
    assert_hidden(text, secret)
    assert redact(text) == f"{before}{scheme}://{user}:***@{rest}"


@settings(deadline=None)
@given(secrets)
def test_a_percent_encoded_password_is_hidden_too(secret):
    text = f"postgresql://alice:{quote(secret, safe='')}@db/memory and postgresql://db/memory?user=alice&password={quote(secret, safe='')}"
    assert MARK not in redact(text)
    assert redact(text).startswith("postgresql://alice:***@db")


def conninfo(value: str) -> str:
    """A value as libpq wants it quoted."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


@settings(deadline=None)
@given(secrets, names, st.sampled_from(["=", " = ", "= "]))
def test_a_connection_string_never_shows_its_password(secret, name, equals):
    spaced = secret.replace(MARK, f"a b'{MARK} c")
    text = f"host=db user=alice {name}{equals}{conninfo(spaced)} dbname=memory"
    assert_hidden(text, secret)
    assert redact(text).endswith("*** dbname=memory")
    if secret[0] not in "'\"":
        escaped = re.sub(r"([\\' ])", r"\\\1", spaced)
        assert_hidden(f"host=db {name}{equals}{escaped} dbname=memory", secret)


@settings(deadline=None)
@given(secrets, names)
def test_settings_in_json_or_a_dictionary_are_hidden(secret, name):
    for text in (json.dumps({name: secret, "region": "eu"}), str({name: secret, "region": "eu"}), f"{name}: {json.dumps(secret)} eu"):
        assert_hidden(text, secret)
        assert "eu" in redact(text)


@settings(deadline=None)
@given(
    st.text(st.sampled_from("abcXYZ019+/=._-~"), min_size=4, max_size=20),
    st.sampled_from(["Bearer ", "Basic ", "", "AWS4-HMAC-SHA256 Credential=k/"]),
)
def test_credentials_of_a_request_are_hidden(secret, kind):
    secret = MARK + secret
    for text in (
        f"Authorization: {kind}{secret}",
        f"{{'authorization': '{kind}{secret}'}}",
        f"GET /x\r\nauthorization={kind}{secret}\r\nhost: x",
    ):
        assert_hidden(text, secret)
    assert_hidden(f"refused bearer {secret} for x", secret)
    assert_hidden(f"https://bucket/key?X-Amz-Signature={secret}", secret)


@pytest.mark.parametrize("cut", ["password='abc Zq7", 'secret: "abc Zq7', "password=abc\\ Zq7", "token='Zq7\\"])
def test_a_quoted_value_that_was_cut_off_is_hidden_to_its_end(cut):
    assert_hidden(cut, MARK)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "there is no snapshot memory-all-1740621600000",
        'password authentication failed for user "alice"',
        "postgresql://db.example:5432/memory",
        "postgresql://alice@db/memory",
        "s3://bucket/prefix/memory-alice@example.org-1740621600000.json",
        "file:///var/cold%20store",
        "a password is missing",
        "2026-02-26T02:00:00.000Z: 12 rows",
    ],
)
def test_other_text_stays(text):
    assert redact(text) == text
