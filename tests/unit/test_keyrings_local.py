"""Key files: what stands in them, what is refused, and that no key shows anywhere but in its file."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import resource
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from coldstore.codec.sign import SigningKey
from coldstore.document.model import WrappedKey
from coldstore.errors import ColdStoreError, ConfigError, KeyMissing, KeyRetired, KeyRingError, WrongKey
from coldstore.keyrings import keyfile
from coldstore.keyrings.files import read_secret, rewrite_secret, write_secret
from coldstore.keyrings.keyfile import Key
from coldstore.keyrings.local import LocalRing, make_key_file, retire_key, rotate_key_file
from coldstore.keyrings.open import open_rings, unwrap_with_any

CONTEXT = "memory-all-1772503200387"
secrets = st.binary(min_size=32, max_size=32)


def ring_of(*keys: Key, more: str = "") -> LocalRing:
    return LocalRing.parse("\n".join([*(k.text() for k in keys), more]), source="keys")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


# --- the text ----------------------------------------------------------------------------------------------------------------------


@given(secrets)
def test_a_key_as_the_page_on_encryption_has_it(secret):
    key = Key.of(secret)
    assert key.id == hashlib.sha256(b"coldstore key id" + secret).hexdigest()[:16]
    assert key.text() == f"coldstore-key-1:{key.id}:{base64.b64encode(secret).decode()}"
    assert keyfile.parse(key.text(), source="x").keys == (key,)


@given(st.lists(secrets, min_size=1, max_size=5, unique=True), st.sampled_from(["\n", "\r\n", " ", "\t", "\n\n# comment of ours\n  "]))
def test_many_keys_the_first_is_current(found, between):
    keys = [Key.of(s) for s in found]
    parsed = keyfile.parse(between.join(k.text() for k in keys), source="x")
    assert list(parsed.keys) == keys
    assert parsed.retired == {}


@given(secrets, st.lists(secrets, min_size=1, max_size=4, unique=True))
def test_rotating_and_retiring_keep_all_the_rest(new, found):
    keys = [Key.of(s) for s in found]
    if new in found:
        return
    text = "# ours\n" + "\n# theirs\n".join(k.text() for k in keys)
    rotated = keyfile.rotated(text, Key.of(new))
    assert list(keyfile.parse(rotated, source="x").keys) == [Key.of(new), *keys]
    assert [line for line in rotated.splitlines() if line.startswith("#")] == [line for line in text.splitlines() if line.startswith("#")]
    buried = keyfile.buried(rotated, keys[0].id, on=date(2026, 11, 21), source="x")
    assert keyfile.parse(buried, source="x").retired == {keys[0].id: "2026-11-21"}
    assert list(keyfile.parse(buried, source="x").keys) == [Key.of(new), *keys[1:]]
    assert keys[0].text() not in buried
    assert f"retired:{keys[0].id}:2026-11-21" in buried.split()


A, B = Key.of(b"a" * 32), Key.of(b"b" * 32)
SIGNER = SigningKey.generate()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no key in keys"),
        ("# only a comment\n", "there is no key in keys"),
        ("retired:0123456789abcdef:2026-01-01", "there is no key in keys"),
        (A.text()[:-2], "line 1 of keys is damaged"),
        (A.text() + "x", "line 1 of keys is damaged"),
        (f"{A.text()}\nhello", "line 2 of keys is damaged"),
        (f"# c\n\n{A.text().replace(A.id, B.id)}", "line 3 of keys is damaged: the key and its id"),
        (A.text()[:40] + ("x" if A.text()[40] != "x" else "y") + A.text()[41:], "the key and its id"),
        (f"{A.text()}\n{B.text()} {A.text()}", f"line 2 of keys has key {A.id} once more"),
        (f"{A.text()}\n{B.text()}\nretired:{B.id}:2026-01-01", "both there and retired"),
        (f"{A.text()}\nretired:{B.id}:2026-01-01\n{B.text()}", "both there and retired"),
        (f"{A.text()}\nretired:{B.id}:yesterday", "line 2 of keys is damaged"),
        (SIGNER.text(), "line 1 of keys is a signing key"),
        ("coldstore-key-2:abc", "a newer kind"),
    ],
)
def test_what_is_no_key_file_is_refused(text, words):
    with pytest.raises(KeyRingError) as error:
        keyfile.parse(text, source="keys")
    assert words in str(error.value)
    assert error.value.hint
    hidden(error.value, A, B)


@given(st.text())
def test_no_text_does_worse_than_be_refused(text):
    with contextlib.suppress(KeyRingError):
        keyfile.parse(text, source="keys")


def test_only_an_old_key_can_be_retired():
    text = f"{A.text()}\n{B.text()}\nretired:0123456789abcdef:2026-01-01"
    for key_id, words in (
        (A.id, "is the current key"),
        ("0123456789abcdef", "was retired on 2026-01-01 already"),
        ("b", "there is no key b"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            keyfile.buried(text, key_id, on=date(2026, 11, 21), source="keys")
        hidden(error.value, A, B)


def test_a_commented_copy_of_a_key_stays_a_comment():
    text = f"# {B.text()}\n{A.text()}\n{B.text()}\n"
    buried = keyfile.buried(text, B.id, on=date(2026, 11, 21), source="keys")
    assert buried == f"# {B.text()}\n{A.text()}\nretired:{B.id}:2026-11-21\n"


# --- nothing shows -----------------------------------------------------------------------------------------------------------------


def forms(key: Key) -> list[str]:
    return [base64.b64encode(key.secret).decode()[:-1], key.secret.hex(), repr(key.secret)[2:-1]]


def hidden(error: ColdStoreError, *keys: Key) -> None:
    shown = f"{error.as_dict()}{error!r}"
    assert not [form for key in keys for form in forms(key) if form in shown]


def test_a_ring_shows_no_key():
    ring = ring_of(A, B)
    for shown in (repr(ring), str(ring), f"{ring}", repr(A), repr(ring.keys), repr(ring.key_ids)):
        assert not [form for key in (A, B) for form in forms(key) if form in shown]
    assert A.id in repr(ring)


@given(st.text(max_size=5), secrets)
def test_an_entry_in_a_sentence_is_hidden(before, secret):
    key = Key.of(secret)
    for text in (f"{before} {key.text()} after", f"there is no key file {SIGNER.text()}"):
        error = ColdStoreError(text, hint=text)
        hidden(error, key)
        assert SIGNER.text()[-44:-1] not in str(error.as_dict())
        assert "***" in str(error)


# --- wrapping ----------------------------------------------------------------------------------------------------------------------


@given(secrets, secrets, st.text(max_size=30))
def test_the_wrapped_form_is_the_documented_one(secret, data_key, context):
    key = Key.of(secret)
    wrapped = ring_of(key).wrap(data_key, context=context)
    data = base64.b64decode(wrapped.wrapped)
    assert (wrapped.ring, wrapped.key, len(data)) == ("local", key.id, 12 + 32 + 16)
    assert AESGCM(secret).decrypt(data[:12], data[12:], b"coldstore/1 data key\0" + context.encode()) == data_key


@given(secrets, st.integers(0, 59), st.integers(1, 255))
def test_every_changed_byte_is_noticed(data_key, place, change):
    ring = ring_of(A)
    wrapped = ring.wrap(data_key, context=CONTEXT)
    data = bytearray(base64.b64decode(wrapped.wrapped))
    data[place] ^= change
    with pytest.raises(WrongKey) as error:
        ring.unwrap(WrappedKey(ring="local", key=A.id, wrapped=base64.b64encode(data).decode()), context=CONTEXT)
    hidden(error.value, A, Key.of(data_key))


def test_a_rotated_key_opens_until_it_is_retired():
    old = ring_of(A).wrap(b"k" * 32, context=CONTEXT)
    rotated = ring_of(B, A)
    assert rotated.key_ids == (B.id, A.id)
    assert rotated.wrap(b"k" * 32, context=CONTEXT).key == B.id
    assert rotated.unwrap(old, context=CONTEXT) == b"k" * 32
    with pytest.raises(KeyRetired, match=f"{A.id} of keys, was retired on 2026-03-03") as error:
        ring_of(B, more=f"retired:{A.id}:2026-03-03").unwrap(old, context=CONTEXT)
    assert "copy of the file" in error.value.hint
    with pytest.raises(KeyMissing, match=f"sealed for local {A.id}; configured: local {B.id}"):
        ring_of(B).unwrap(old, context=CONTEXT)


def test_wrong_missing_and_retired_are_three_sentences():
    old = ring_of(A).wrap(b"k" * 32, context=CONTEXT)
    said = set()
    for ring, context in ((ring_of(A), "memory-all-1"), (ring_of(B), CONTEXT), (ring_of(B, more=f"retired:{A.id}:2026-03-03"), CONTEXT)):
        with pytest.raises(KeyRingError) as error:
            unwrap_with_any([ring], [old], context=context)
        said.add((error.value.code, str(error.value), error.value.hint))
    assert {code for code, _, _ in said} == {"WrongKey", "KeyMissing", "KeyRetired"}
    assert len({sentence for _, sentence, _ in said}) == len({hint for _, _, hint in said}) == 3


def test_two_files_at_once(tmp_path):
    for name, key in (("a", A), ("b", B)):
        write_secret(tmp_path / name, keyfile.new_text(key), what="key file")
    both = open_rings([f"local:{tmp_path / 'a'}", f"local:{tmp_path / 'b'}"], environ={})
    (only_b,) = open_rings(["local"], environ={"COLD_STORE_KEY": B.text()})
    wrapped = [ring.wrap(b"k" * 32, context=CONTEXT) for ring in both]
    assert unwrap_with_any([only_b], wrapped, context=CONTEXT) == b"k" * 32
    assert unwrap_with_any(both, wrapped[1:], context=CONTEXT) == b"k" * 32


# --- files -------------------------------------------------------------------------------------------------------------------------


def test_a_new_file_is_its_owners(path):
    previous = os.umask(0)
    try:
        key_id = make_key_file(path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert LocalRing.read(path).key_ids == (key_id,)
    assert path.read_text().startswith("# ")


def test_a_file_is_never_overwritten(path):
    path.write_text("something else")
    with pytest.raises(KeyRingError, match="is there already"):
        make_key_file(path)
    link = path.with_name("link")
    link.symlink_to(path.with_name("nowhere"))
    with pytest.raises(KeyRingError, match="is there already"):
        make_key_file(link)
    assert path.read_text() == "something else"
    assert names(path.parent) == ["keys", "link"]


def test_of_eight_who_make_it_one_does(path):
    start = threading.Barrier(8)

    def make(_: int) -> str | None:
        start.wait()
        with contextlib.suppress(KeyRingError):
            return make_key_file(path)
        return None

    with ThreadPoolExecutor(8) as pool:
        made = [key for key in pool.map(make, range(8)) if key]
    assert made == list(LocalRing.read(path).key_ids)


def test_the_life_of_a_key_file(path):
    first = make_key_file(path)
    old = LocalRing.read(path).wrap(b"k" * 32, context=CONTEXT)
    second = rotate_key_file(path)
    ring = LocalRing.read(path)
    assert ring.key_ids == (second, first)
    assert ring.unwrap(old, context=CONTEXT) == b"k" * 32
    copy = path.read_text()
    assert retire_key(path, first) == datetime.now(UTC).date().isoformat()
    with pytest.raises(KeyRetired):
        LocalRing.read(path).unwrap(old, context=CONTEXT)
    path.write_text(copy)
    assert LocalRing.read(path).unwrap(old, context=CONTEXT) == b"k" * 32
    assert names(path.parent) == ["keys"]


def test_a_change_keeps_owner_and_mode(path):
    make_key_file(path)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    rotate_key_file(path)
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino


def test_a_link_to_the_file_stays_a_link(path):
    make_key_file(path)
    link = path.with_name("link")
    link.symlink_to(path)
    rotate_key_file(link)
    assert link.is_symlink()
    assert len(LocalRing.read(path).key_ids) == 2


def test_many_rotate_at_once_and_no_key_is_lost(path):
    first = make_key_file(path)
    start = threading.Barrier(8)

    def rotate(_: int) -> str | None:
        start.wait()
        with contextlib.suppress(KeyRingError):
            return rotate_key_file(path)
        return None

    with ThreadPoolExecutor(8) as pool:
        made = {key for key in pool.map(rotate, range(8)) if key}
    assert made
    assert set(LocalRing.read(path).key_ids) == made | {first}
    assert names(path.parent) == ["keys"]


def test_whoever_was_killed_in_the_middle_is_named(path):
    make_key_file(path)
    text, left = path.read_text(), path.with_name(".keys.new")
    left.write_text("half")
    with pytest.raises(KeyRingError) as error:
        rotate_key_file(path)
    assert str(left) in error.value.hint
    assert (path.read_text(), left.read_text()) == (text, "half")
    left.unlink()
    rotate_key_file(path)


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(path):
    with no_room(), pytest.raises(KeyRingError, match="cannot make the key file"):
        make_key_file(path)
    assert names(path.parent) == []
    make_key_file(path)
    text = path.read_text()
    with no_room(), pytest.raises(KeyRingError, match="cannot change the key file"):
        rotate_key_file(path)
    assert path.read_text() == text
    assert names(path.parent) == ["keys"]


def test_a_damaged_file_is_not_rotated(path):
    path.write_text(A.text()[:-3])
    path.chmod(0o600)
    with pytest.raises(KeyRingError, match=r"line 1 of .*keys is damaged"):
        rotate_key_file(path)
    assert path.read_text() == A.text()[:-3]
    assert names(path.parent) == ["keys"]


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o444, 0o602, 0o666])
def test_a_file_that_everybody_may_read_is_refused(path, mode):
    make_key_file(path)
    text = path.read_text()
    path.chmod(mode)
    for use in (lambda: LocalRing.read(path), lambda: rotate_key_file(path)):
        with pytest.raises(KeyRingError, match=f"everybody .*{mode:04o}") as error:
            use()
        assert "chmod 600" in error.value.hint
    assert path.read_text() == text


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_a_group_may_read_it(path, mode):
    make_key_file(path)
    path.chmod(mode)
    assert LocalRing.read(path).key_ids


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user who is not root, whom no mode keeps out."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read(path):
    make_key_file(path)
    path.chmod(0)
    with nobody(), pytest.raises(KeyRingError, match=r"cannot read the key file .*: Permission denied"):
        LocalRing.read(path)
    path.parent.chmod(0o500)
    with nobody(), pytest.raises(KeyRingError, match=r"cannot make the key file .*: Permission denied"):
        make_key_file(path.with_name("other"))
    path.parent.chmod(0o700)


def test_what_is_no_file_is_said_to_be_none(path, tmp_path):
    for missing in (path, path / "below"):
        with pytest.raises(KeyRingError, match="there is no key file") as error:
            LocalRing.read(missing)
        assert "keygen" in error.value.hint
    for use in (LocalRing.read, rotate_key_file):
        with pytest.raises(KeyRingError, match="is a folder and no key file"):
            use(tmp_path)
    with pytest.raises(KeyRingError, match="there is no folder for"):
        make_key_file(tmp_path / "no" / "keys")
    with pytest.raises(KeyRingError, match="it is no path"):
        LocalRing.read(Path("a\0b"))
    make_key_file(path)
    with pytest.raises(KeyRingError, match=r"cannot read the key file .*: Not a directory"):
        LocalRing.read(path / "below")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"# " + b"x" * (1 << 16), b"\0" * 10])
def test_other_files_are_no_key_files(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(KeyRingError):
        LocalRing.read(path)


def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(KeyRingError, match="too large"):
        LocalRing.read(Path("/dev/zero"))


def test_a_pipe_will_do(path):
    os.mkfifo(path, 0o600)
    writer = threading.Thread(target=path.write_text, args=(A.text(),))
    writer.start()
    assert LocalRing.read(path).key_ids == (A.id,)
    writer.join()


def test_a_mark_of_an_editor_and_its_line_ends_do_no_harm(path):
    path.write_bytes("\ufeff".encode() + f"# x\r\n{A.text()}\r\n".encode())
    path.chmod(0o600)
    assert LocalRing.read(path).key_ids == (A.id,)


def test_a_signing_key_in_a_file_comes_back(path):
    write_secret(path, f"# a comment\n{SIGNER.text()}\n", what="signing key")
    assert SigningKey.parse(read_secret(path, what="signing key")).did == SIGNER.did
    with pytest.raises(KeyRingError, match="is a signing key"):
        LocalRing.read(path)


def test_an_error_of_the_change_itself_passes(path):
    make_key_file(path)
    text = path.read_text()

    def fail(_: str) -> str:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        rewrite_secret(path, fail, what="key file")
    assert path.read_text() == text
    assert names(path.parent) == ["keys"]


def test_the_home_folder_has_its_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    key_id = make_key_file(tmp_path / "keys")
    (ring,) = open_rings(["local:~/keys"], environ={})
    assert ring.key_ids == (key_id,)
    assert re.fullmatch("[0-9a-f]{16}", key_id)
