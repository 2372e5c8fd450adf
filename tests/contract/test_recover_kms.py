"""The commands that the reader without coldstore prints for a snapshot that a key service sealed, typed into a shell.

`aws` and `gcloud` stand here as small programs that take the options of the real ones and ask the same servers as the other tests: moto,
and the tests' own Google Cloud KMS. So options, quoting and what is bound to the key are shown; that the real tools read their options
as their manuals say is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coldstore.keyrings.open import GCP_ENDPOINT, open_rings
from coldstore.keyrings.ring import KeyRing
from tests.recovering import PROGRAM, recover
from tests.servers import GcpKms, S3Server
from tests.unit.test_recover import NOTES, lay

AWS = """
import argparse, base64, os, botocore.session

parser = argparse.ArgumentParser()
for name in ("service", "operation"):
    parser.add_argument(name)
for name in ("--key-id", "--ciphertext-blob", "--encryption-context", "--query", "--output"):
    parser.add_argument(name, required=True)
found = parser.parse_args()
assert (found.service, found.operation, found.query, found.output) == ("kms", "decrypt", "Plaintext", "text")
name, _, value = found.encryption_context.partition("=")
client = botocore.session.get_session().create_client("kms", endpoint_url=os.environ["KMS_URL"], region_name="us-east-1")
blob = base64.b64decode(found.ciphertext_blob, validate=True)
answer = client.decrypt(KeyId=found.key_id, CiphertextBlob=blob, EncryptionContext={name: value})
print(base64.b64encode(answer["Plaintext"]).decode())
"""
GCLOUD = """
import argparse, base64, json, os, sys, urllib.request

parser = argparse.ArgumentParser()
for name in ("service", "operation"):
    parser.add_argument(name)
for name in ("--key", "--ciphertext-file", "--additional-authenticated-data-file", "--plaintext-file"):
    parser.add_argument(name, required=True)
found = parser.parse_args()
assert (found.service, found.operation, found.ciphertext_file, found.plaintext_file) == ("kms", "decrypt", "-", "-")
bound = open(found.additional_authenticated_data_file, "rb").read()
sent = {"ciphertext": sys.stdin.buffer.read(), "additionalAuthenticatedData": bound}
body = json.dumps({name: base64.b64encode(value).decode() for name, value in sent.items()}).encode()
url = f"{os.environ['KMS_URL']}/v1/{found.key}:decrypt"
request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
sys.stdout.buffer.write(base64.b64decode(json.load(urllib.request.urlopen(request))["plaintext"]))
"""


@pytest.fixture(params=["aws-kms", "gcp-kms"])
def service(request, moto: S3Server, gcp_kms: GcpKms, monkeypatch, tmp_path) -> tuple[KeyRing, str]:
    """A ring with a key, and the address of its service."""
    for name, value in moto.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    if request.param == "gcp-kms":
        (ring,) = open_rings([f"gcp-kms:{gcp_kms.key()}"], environ={GCP_ENDPOINT: gcp_kms.plain_url})
        return ring, gcp_kms.plain_url
    import botocore.session

    client: Any = botocore.session.get_session().create_client("kms", endpoint_url=moto.endpoint_url, region_name="us-east-1")
    (ring,) = open_rings([f"aws-kms:{client.create_key()['KeyMetadata']['Arn']}"], environ={}, kms_endpoint_url=moto.endpoint_url)
    return ring, str(moto.endpoint_url)


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


def test_the_printed_command_opens_the_snapshot(service, tmp_path):
    ring, url = service
    laid = lay(tmp_path, sealed=True)
    laid.rewrite(
        sealing={
            **msgspec.to_builtins(laid.manifest.sealing),
            "keys": [msgspec.to_builtins(ring.wrap(laid.data_key.secret, context=laid.id))],
        }
    )
    done = recover(laid.store, laid.id)
    assert done.returncode == 1
    (command,) = [line.strip() for line in done.stderr.decode().splitlines() if "--data-key" in line]
    program(tmp_path, "aws", AWS)
    program(tmp_path, "gcloud", GCLOUD)
    opened = subprocess.run(
        f'"{sys.executable}" "{PROGRAM}" "{laid.store}" {laid.id} {command}',
        shell=True,
        check=False,
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KMS_URL": url},
    )
    assert opened.returncode == 0, opened.stderr
    assert opened.stdout == b"".join(b"notes\t" + row + b"\n" for row in NOTES)
