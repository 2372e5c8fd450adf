"""Keys and signatures by the program itself: sealing, rotation, demands, and one exit code for each way to be refused."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from coldstore.codec.sign import SigningKey
from coldstore.document import model
from tests.acceptance.program import ask
from tests.integration.helpers import everything

CONFIG, NOT_FOUND, DAMAGED, KEYS, SIGNATURE = 2, 6, 9, 10, 11


@pytest.fixture
def vault(cold, memory):
    """A key file, a signing key, and a configuration that names them by paths beside itself."""
    (cold.folder / "conf").mkdir(mode=0o700)
    cold("keygen", "conf/keys")
    did = cold("keygen", "--sign", "conf/signing", "--json").json["did"]
    (cold.folder / "conf" / "coldstore.toml").write_text(
        f'[store]\npath = "../store"\n[encryption]\nkey_rings = ["local:keys"]\n[signing]\nsigning_key_file = "signing"\n'
        f'trusted_keys = ["{did}"]\nrequire_signature = true\n'
    )
    cold.env |= {"DATABASE_URL": memory}
    return cold


WITH = ("--config", "conf/coldstore.toml")


def snapshot(cold, *arguments: str) -> dict:
    return cold("snapshot", *arguments, *WITH, "--json").json


def manifest_of(cold, info: dict) -> Path:
    return cold.folder / "store" / info["manifest"]


def test_there_and_back(vault, target):
    """Started in another folder than the configuration's."""
    info = snapshot(vault)
    assert info["sealed"]
    assert info["signedBy"].startswith("did:key:z6Mk")
    assert info["path"].endswith(".json.enc")
    assert "naïve".encode() not in (vault.folder / "store" / info["path"]).read_bytes()
    assert vault("verify", "--all", "--deep", *WITH, "--json").json["results"][0]["state"] == "ok"
    assert len(json.loads(vault("cat", info["id"], *WITH).stdout)["dailyMemories"]) == 6
    vault("restore", "--to", target, *WITH)
    assert ask(target, "SELECT count(*) FROM daily_memories") == [(6,)]
    shown = vault("show", info["id"], *WITH).out
    assert info["signedBy"] in shown
    assert "local " in shown


def test_a_sealed_file(vault, target):
    info = snapshot(vault)
    for key in (info["path"], info["manifest"]):
        shutil.copy(vault.folder / "store" / key, vault.folder)
    file = info["path"].rpartition("/")[2]
    vault.refused("restore", "--file", file, "--to", target, code=KEYS, error="KeyMissing")
    (vault.folder / info["manifest"].rpartition("/")[2]).rename(vault.folder / "away")
    vault.refused("restore", "--file", file, "--to", target, *WITH, code=5, error="CorruptManifest")
    (vault.folder / "away").rename(vault.folder / info["manifest"].rpartition("/")[2])
    vault("restore", "--file", file, "--to", target, *WITH)
    assert ask(target, "SELECT count(*) FROM daily_memories") == [(6,)]


def test_by_variables_alone(vault, target):
    """Lists with commas, keys as text."""
    info = snapshot(vault)
    own = next(line for line in (vault.folder / "conf/keys").read_text().splitlines() if line.startswith("coldstore-key"))
    stranger = SigningKey.generate().did
    env = {
        "COLD_STORE_PATH": "store",
        "COLD_STORE_KEY": own,
        "COLD_STORE_TRUSTED_KEYS": f" {stranger}, {info['signedBy']} ,",
        "COLD_STORE_REQUIRE_SIGNATURE": "true",
    }
    assert vault("verify", "--all", "--deep", "--json", env=env).json["ok"]
    rings = {"COLD_STORE_KEY": None, "COLD_STORE_KEY_RINGS": "local:conf/keys"}
    vault("restore", info["id"], "--to", target, env=env | rings)
    only_stranger = env | {"COLD_STORE_TRUSTED_KEYS": stranger}
    assert vault("cat", info["id"], env=only_stranger, code=SIGNATURE).stdout == b""
    signed = vault("snapshot", "--json", env={**env, "COLD_STORE_SIGNING_KEY": signing_key(vault)}).json
    assert (signed["signedBy"], signed["sealed"]) == (info["signedBy"], True)
    plain = vault("snapshot", "--json", env=env | {"COLD_STORE_SEAL": "false"}).json
    assert (plain["signedBy"], plain["sealed"]) == (None, False)


def signing_key(cold) -> str:
    return next(line for line in (cold.folder / "conf/signing").read_text().splitlines() if not line.startswith("#"))


def test_three_ways_not_to_open(vault, target):
    """Not configured, rotated away, and another snapshot's: three errors, one exit code, and the target as it was."""
    info, other = snapshot(vault), snapshot(vault, "--uid", "uid_alice")
    before = everything(target)
    to = ("--to", target)
    vault.refused("restore", info["id"], *to, "--store", "store", code=KEYS, error="KeyMissing")
    vault("keygen", "conf/other")
    wrong = {"COLD_STORE_KEY_RINGS": "local:conf/other"}
    told = vault.refused("restore", info["id"], *to, "--store", "store", env=wrong, code=KEYS, error="KeyMissing")
    assert "sealed for local" in told["message"]
    shutil.copy(vault.folder / "conf/keys", vault.folder / "conf/copy")
    (vault.folder / "conf/copy").chmod(0o600)
    old = vault("keygen", "conf/copy", "--rotate", "--json") and key_ids(vault, "conf/copy")[1]
    vault("keygen", "conf/copy", "--retire", old)
    gone = {"COLD_STORE_KEY_RINGS": "local:conf/copy"}
    told = vault.refused("restore", info["id"], *to, "--store", "store", env=gone, code=KEYS, error="KeyRetired")
    assert old in told["message"]
    path = manifest_of(vault, info)
    good = path.read_bytes()
    body = json.loads(good)
    body["sealing"]["keys"] = json.loads(manifest_of(vault, other).read_bytes())["sealing"]["keys"]
    path.unlink()
    path.write_bytes(model.encode_record(body, signer=SigningKey.parse(signing_key(vault))))
    vault.refused("restore", info["id"], *to, *WITH, code=KEYS, error="WrongKey")
    assert everything(target) == before
    results = {r["id"]: r["state"] for r in vault("verify", "--all", "--deep", *WITH, "--json", code=DAMAGED).json["results"]}
    assert results[info["id"]] == "unopened"  # and its pointer means another one, which is damage


def key_ids(cold, file: str) -> list[str]:
    return [line.split(":")[1] for line in (cold.folder / file).read_text().splitlines() if line.startswith("coldstore-key-1:")]


def test_rotation_to_its_end(vault, target):
    """A new key, every snapshot rewrapped, the old key destroyed: documents and manifests are what they were."""
    infos = [snapshot(vault), snapshot(vault, "--uid", "uid_alice", "--compression", "zstd")]
    (old,) = key_ids(vault, "conf/keys")
    before = {p: p.read_bytes() for p in (vault.folder / "store").rglob("*") if p.is_file()}
    vault("keygen", "conf/keys", "--rotate")
    assert set(vault("rewrap", "--all", *WITH, "--json").json["rewrapped"]) == {i["id"] for i in infos}
    assert vault("rewrap", "--all", *WITH).out == "0 snapshots rewrapped.\n"
    vault("keygen", "conf/keys", "--retire", old)
    assert {p: p.read_bytes() for p in before} == before
    checked = vault("verify", "--all", "--deep", *WITH, "--json").json
    assert (checked["ok"], checked["orphans"]) == (True, [])
    vault("restore", infos[0]["id"], "--to", target, *WITH)
    for path in (vault.folder / "store").rglob("*.keys-*"):
        path.unlink()
    assert vault("verify", "--all", "--deep", *WITH, code=KEYS).out.splitlines()[-1] == "2 checked deeply, 0 damaged, 2 unopened"


def test_the_worst_of_several_decides_the_exit_code(vault):
    for uid in ("uid_alice", "uid_bob"):
        snapshot(vault, "--uid", uid)
    everybody = snapshot(vault)
    foreign = {"COLD_STORE_TRUSTED_KEYS": SigningKey.generate().did, "COLD_STORE_SIGNING_KEY_FILE": ""}
    lenient = ("--no-require-signature",)
    for arguments, env, code in (
        (["--deep", *WITH], {}, 0),
        (["--deep", "--store", "store"], {}, KEYS),
        (["--store", "store", "--require-signature"], foreign, SIGNATURE),
        (["--deep", "--store", "store", "--require-signature"], foreign, SIGNATURE),
        (["--store", "store", *lenient], foreign, 0),
    ):
        vault("verify", "--all", *arguments, env=env, code=code)
    path = vault.folder / "store" / everybody["path"]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1])
    told = vault("verify", "--all", "--deep", "--store", "store", "--require-signature", "--json", env=foreign, code=DAMAGED).json
    assert sorted(r["state"] for r in told["results"]) == ["damaged", "untrusted", "untrusted"]
    assert vault("verify", everybody["id"], *WITH, code=DAMAGED).out


def test_a_signature_is_required_of_every_command_that_reads(vault, target):
    signed = snapshot(vault)
    unsigned = vault("snapshot", "--json", "--store", "store").json
    before = everything(target)
    for command in (["restore", unsigned["id"], "--to", target], ["restore", "--latest", "--to", target]):
        vault.refused(*command, *WITH, code=SIGNATURE, error="SignatureMissing")
    assert vault("cat", unsigned["id"], *WITH, code=SIGNATURE).stdout == b""
    vault("verify", unsigned["id"], *WITH, code=SIGNATURE)
    vault("verify", unsigned["id"], *WITH, "--no-require-signature")
    assert everything(target) == before
    told = vault.refused(
        "restore", unsigned["id"], "--to", target, "--store", "store", "--require-signature", code=CONFIG, error="ConfigError"
    )
    assert "trusted_keys" in told["hint"]
    vault("restore", signed["id"], "--to", target, *WITH)
    assert ask(target, "SELECT count(*) FROM daily_memories") == [(6,)]


def test_who_trusts_somebody_is_told_of_others(vault, target):
    unsigned = vault("snapshot", "--json", "--store", "store").json
    told = vault("restore", unsigned["id"], "--to", target, *WITH, "--no-require-signature", "--json").json
    assert told["notes"][0] == f"{unsigned['id']} is not signed"


def test_a_manifest_that_was_forged(vault, target):
    info = snapshot(vault)
    path = manifest_of(vault, info)
    body = json.loads(path.read_bytes())
    body["label"] = "another"
    forged = json.loads(model.encode_record(body, signer=SigningKey.generate()))
    forged["signature"]["by"] = info["signedBy"]
    unsigned = model.encode_record(body)
    path.unlink()
    for data, error in ((resummed(forged), "SignatureInvalid"), (unsigned, "SignatureMissing")):
        path.write_bytes(data)
        vault.refused("restore", info["id"], "--to", target, *WITH, code=SIGNATURE, error=error)
        assert vault("verify", "--all", *WITH, code=DAMAGED).out  # the pointer knows another one
    path.write_bytes(resummed(forged))
    vault.refused("restore", info["id"], "--to", target, "--store", "store", code=SIGNATURE, error="SignatureInvalid")


def resummed(body: dict) -> bytes:
    rest = {k: v for k, v in body.items() if k != "checksum"}
    return model.canonical({**rest, "checksum": hashlib.sha256(model.canonical(rest)).hexdigest()}) + b"\n"


def test_delete_and_what_is_missed(vault):
    one, two, three = (snapshot(vault) for _ in range(3))
    told = vault.refused("delete", two["id"], *WITH, code=CONFIG, error="ConfigError")
    assert "12 rows" in told["message"]
    assert vault("delete", two["id"], "--yes", *WITH, "--json").json == {"deleted": [two["id"]]}
    assert [i["id"] for i in vault("list", *WITH, "--json").json] == [three["id"], one["id"]]
    assert vault("verify", "--all", *WITH, "--json").json["ok"]
    (record,) = (vault.folder / "store" / "deletions").rglob("*.json")
    record.unlink()
    (problem,) = vault("verify", three["id"], *WITH, "--json", code=DAMAGED).json["results"][0]["problems"]
    assert two["id"] in problem
    vault.refused("delete", two["id"], "--yes", *WITH, code=NOT_FOUND, error="NotFound")


def test_what_must_be_kept(vault):
    kept = vault("snapshot", *WITH, "--json", env={"COLD_STORE_RETAIN_DAYS": "30"}).json
    free = snapshot(vault)
    told = vault.refused("delete", free["id"], kept["id"], "--yes", *WITH, code=4, error="ObjectLocked")
    assert kept["retainedUntil"] in told["message"]
    assert len(vault("list", *WITH, "--json").json) == 2


def test_a_sample_can_be_repeated(vault):
    snapshot(vault)
    first = vault("verify", "--all", "--sample", "50%", *WITH, "--json").json
    again = vault("verify", "--all", "--sample", "50%", "--seed", str(first["seed"]), *WITH, "--json").json
    assert (again["seed"], again["sample"]) == (first["seed"], 0.5)
    assert [r["framesRead"] for r in again["results"]] == [r["framesRead"] for r in first["results"]]
    for wrong in ("0%", "101%", "5", "x%", "-5%"):
        vault.refused("verify", "--all", "--sample", wrong, *WITH, code=CONFIG, error="ConfigError")
    vault.refused("verify", "--all", "--deep", "--sample", "5%", *WITH, code=CONFIG, error="ConfigError")


def test_verify_since_a_day(vault):
    info = snapshot(vault)
    assert vault("verify", "--since", info["snapshotAt"][:10], *WITH, "--json").json["checked"] == 1
    vault.refused("verify", "--since", "2999-01-01", *WITH, code=NOT_FOUND, error="NotFound")
    vault.refused("verify", "--since", "yesterday", *WITH, code=CONFIG, error="ConfigError")


@pytest.mark.parametrize("text", ["nonsense", "coldstore-signing-key-1:c2hvcnQ=", "coldstore-key-1:0000000000000000:" + "A" * 43 + "="])
def test_a_signing_key_that_is_none_is_not_shown(vault, text):
    told = vault.refused("snapshot", "--store", "store", env={"COLD_STORE_SIGNING_KEY": text}, code=CONFIG, error="ConfigError")
    assert text not in json.dumps(told)
    assert not (vault.folder / "store").exists()


def test_secrets_are_nowhere(vault):
    """Neither in what the program says nor in what it writes beside the key files."""
    secret = [
        line.rpartition(":")[2]
        for file in ("keys", "signing")
        for line in (vault.folder / "conf" / file).read_text().splitlines()
        if "=" in line[-1:]
    ]
    assert len(secret) == 2
    info = snapshot(vault)
    said = [
        vault(*command, *WITH).stdout for command in (["show", info["id"]], ["show", info["id"], "--json"], ["list"], ["verify", "--all"])
    ]
    stored = [p.read_bytes() for p in (vault.folder / "store").rglob("*") if p.is_file()]
    for text in secret:
        for data in [*said, *stored]:
            assert text.encode() not in data
            assert base64.b64decode(text) not in data
