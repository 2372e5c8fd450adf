"""A small Google Cloud KMS of the tests' own, for there is no emulator of it to be had: what it proves is that coldstore does what Google's
documentation says, not that Google does.

It has keys with versions and really encrypts (AES-256-GCM with the additional data), checks and makes the CRC32C fields, and answers with the
statuses, codes and sentences of the documentation: disabled, scheduled and destroyed versions, denied permissions, unknown keys, what does
not decrypt. On one port it speaks plain HTTP and asks for no credentials, as emulators do; on the other TLS with a certificate of its own,
and there it wants a token that its `/token` gives for an assertion signed by the service account.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import ipaddress
import itertools
import json
import secrets
import ssl
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import google_crc32c

from tests.servers.process import free_port, running_module

RING = "projects/test/locations/europe-west1/keyRings/memory/cryptoKeys"
# What google-auth names as the audience of an assertion, wherever it sends it.
AUDIENCE = "https://oauth2.googleapis.com/token"
ACCOUNT = "coldstore@test.iam.gserviceaccount.com"


@dataclass
class GcpKms:
    """The running server, seen from the test."""

    plain_url: str
    tls_url: str
    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def login(self) -> dict[str, str]:
        """Environment for a process that is to reach the TLS port as the service account."""
        return {"GOOGLE_APPLICATION_CREDENTIALS": str(self.folder / "account.json"), "REQUESTS_CA_BUNDLE": str(self.folder / "cert.pem")}

    def key(self, *, purpose: str = "ENCRYPT_DECRYPT") -> str:
        """A new key with one version; its name."""
        name = f"{RING}/k{next(self._numbers)}"
        self._ask("make", name=name, purpose=purpose)
        return name

    def rotate(self, name: str) -> None:
        self._ask("rotate", name=name)

    def set_state(self, version: str, state: str) -> None:
        """DISABLED, DESTROY_SCHEDULED, DESTROYED, ENABLED."""
        key, _, number = version.partition("/cryptoKeyVersions/")
        self._ask("state", name=key, number=int(number), state=state)

    def deny(self, name: str, operation: str) -> None:
        self._ask("deny", name=name, operation=operation)

    def garble(self, name: str, how: str, *, times: int) -> None:
        """The next answers for this key: `unverified` (it did not get our checksum), or `flipped` (a bit of the answer is another)."""
        self._ask("garble", name=name, how=how, times=times)

    def _ask(self, what: str, **fields: Any) -> None:
        request = urllib.request.Request(f"{self.plain_url}/__{what}", data=json.dumps(fields).encode(), method="POST")
        urllib.request.urlopen(request, timeout=30).close()


@contextlib.contextmanager
def gcp_kms_server() -> Iterator[GcpKms]:
    plain, tls = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="gcp-kms-") as name:
        folder = Path(name)
        _write_identity(folder, token_uri=f"https://127.0.0.1:{tls}/token")
        with running_module("tests.servers.gcp_kms", str(plain), str(tls), str(folder), ports=[plain, tls]):
            yield GcpKms(f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{tls}", folder)


def _write_identity(folder: Path, *, token_uri: str) -> None:
    """One RSA key: the server's, with a certificate for this machine, and the service account's."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "key.pem").write_bytes(pem)
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    account = {"type": "service_account", "project_id": "test", "private_key_id": "1", "private_key": pem.decode(), "client_email": ACCOUNT}
    (folder / "account.json").write_text(json.dumps(account | {"token_uri": token_uri}))


# --- the server --------------------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


_NOT_DECRYPTED = (400, "INVALID_ARGUMENT", "Decryption failed: verify that 'name' refers to the correct CryptoKey.")


@dataclass
class _Version:
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    state: str = "ENABLED"


@dataclass
class _Key:
    purpose: str
    versions: list[_Version] = field(default_factory=lambda: [_Version()])
    denied: set[str] = field(default_factory=set)
    garbled: list[str] = field(default_factory=list)


class _Kms:
    def __init__(self, certificate: bytes) -> None:
        self.certificate = certificate
        self.keys: dict[str, _Key] = {}
        self.tokens: set[str] = set()

    # what a test arranges

    def arrange(self, what: str, name: str, **fields: Any) -> None:
        if what == "make":
            self.keys[name] = _Key(fields["purpose"])
        key = self.keys[name]
        if what == "rotate":
            key.versions.append(_Version())
        if what == "state":
            key.versions[fields["number"] - 1].state = fields["state"]
        if what == "deny":
            key.denied.add(fields["operation"])
        if what == "garble":
            key.garbled = [fields["how"]] * fields["times"]

    # what Google answers

    def token(self, assertion: str) -> dict[str, Any]:
        from google.auth import jwt

        try:
            claims = jwt.decode(assertion, certs=self.certificate, audience=AUDIENCE)
        except ValueError as exc:
            raise _Refused(400, "invalid_grant", str(exc)) from exc
        if claims["iss"] != ACCOUNT or claims["scope"] != "https://www.googleapis.com/auth/cloudkms":
            raise _Refused(400, "invalid_grant", "no such account or scope")
        token = secrets.token_urlsafe()
        self.tokens.add(token)
        return {"access_token": token, "token_type": "Bearer", "expires_in": 3600}

    def authenticate(self, header: str, *, secure: bool) -> None:
        if header and not secure:
            raise _Refused(400, "INVALID_ARGUMENT", "Credentials were sent without TLS.")
        if secure and header.removeprefix("Bearer ") not in self.tokens:
            raise _Refused(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")

    def answer(self, name: str, operation: str, body: dict[str, str]) -> dict[str, Any]:
        key = self.keys.get(name)
        if key is None:
            raise _Refused(404, "NOT_FOUND", f"CryptoKey {name} not found.")
        if operation in key.denied:
            permission = f"cloudkms.cryptoKeyVersions.useTo{operation.capitalize()}"
            raise _Refused(403, "PERMISSION_DENIED", f"Permission '{permission}' denied on resource '{name}' (or it may not exist).")
        if key.purpose != "ENCRYPT_DECRYPT":
            raise _Refused(400, "FAILED_PRECONDITION", f"{name} has purpose {key.purpose}, which does not support this operation.")
        reply = self.encrypt(name, key, body) if operation == "encrypt" else self.decrypt(name, key, body)
        return _garbled(reply, key.garbled.pop()) if key.garbled else reply

    def encrypt(self, name: str, key: _Key, body: dict[str, str]) -> dict[str, Any]:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        plain, checked = _checked(body, "plaintext")
        extra, extra_checked = _checked(body, "additionalAuthenticatedData")
        number, nonce = len(key.versions), secrets.token_bytes(12)
        version = self.enabled(name, key, number)
        sealed = number.to_bytes(4) + nonce + AESGCM(version.secret).encrypt(nonce, plain, extra)
        return {
            "name": f"{name}/cryptoKeyVersions/{number}",
            **_with_checksum("ciphertext", sealed),
            "verifiedPlaintextCrc32c": checked,
            "verifiedAdditionalAuthenticatedDataCrc32c": extra_checked,
            "protectionLevel": "SOFTWARE",
        }

    def decrypt(self, name: str, key: _Key, body: dict[str, str]) -> dict[str, Any]:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        sealed, _ = _checked(body, "ciphertext")
        extra, _ = _checked(body, "additionalAuthenticatedData")
        number, nonce = int.from_bytes(sealed[:4]), sealed[4:16]
        if not 1 <= number <= len(key.versions):
            raise _Refused(*_NOT_DECRYPTED)
        version = self.enabled(name, key, number)
        try:
            plain = AESGCM(version.secret).decrypt(nonce, sealed[16:], extra)
        except (InvalidTag, ValueError) as exc:
            raise _Refused(*_NOT_DECRYPTED) from exc
        return {**_with_checksum("plaintext", plain), "usedPrimary": number == len(key.versions), "protectionLevel": "SOFTWARE"}

    def enabled(self, name: str, key: _Key, number: int) -> _Version:
        version = key.versions[number - 1]
        if version.state != "ENABLED":
            said = f"{name}/cryptoKeyVersions/{number} is not enabled, current state is: {version.state}."
            raise _Refused(400, "FAILED_PRECONDITION", said)
        return version


def _checked(body: dict[str, str], name: str) -> tuple[bytes, bool]:
    """A value of the request, and whether a checksum came with it; one that does not fit is refused."""
    data = base64.b64decode(body.get(name, ""))
    checksum = body.get(f"{name}Crc32c")
    if checksum is not None and int(checksum) != google_crc32c.value(data):
        raise _Refused(400, "INVALID_ARGUMENT", f"The checksum in field {name}_crc32c did not match the data in field {name}.")
    return data, checksum is not None


def _with_checksum(name: str, data: bytes) -> dict[str, str]:
    return {name: base64.b64encode(data).decode(), f"{name}Crc32c": str(google_crc32c.value(data))}


def _garbled(reply: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "unverified":  # false members are left out of Google's JSON
        return {k: v for k, v in reply.items() if k != "verifiedPlaintextCrc32c"}
    name = "ciphertext" if "ciphertext" in reply else "plaintext"
    data = base64.b64decode(reply[name])
    return reply | {name: base64.b64encode(bytes([data[0] ^ 1]) + data[1:]).decode()}


async def _serve(port: int, tls_port: int, folder: Path) -> None:
    from aiohttp import web

    kms = _Kms((folder / "cert.pem").read_bytes())

    async def handle(request: Any) -> Any:
        try:
            if request.path.startswith("/__"):
                kms.arrange(request.path[3:], **await request.json())
                return web.json_response({})
            if request.path == "/token":
                return web.json_response(kms.token(str((await request.post())["assertion"])))
            kms.authenticate(request.headers.get("Authorization", ""), secure=request.secure)
            name, _, operation = request.path.removeprefix("/v1/").rpartition(":")
            return web.json_response(kms.answer(name, operation, await request.json()))
        except _Refused as exc:
            if request.path == "/token":
                return web.json_response({"error": exc.code, "error_description": str(exc)}, status=exc.status)
            error = {"code": exc.status, "message": str(exc), "status": exc.code}
            return web.json_response({"error": error}, status=exc.status)

    app = web.Application()
    app.router.add_route("POST", "/{path:.*}", handle)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await web.TCPSite(runner, "127.0.0.1", tls_port, ssl_context=context).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in (("port", int), ("tls_port", int), ("folder", Path)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    asyncio.run(_serve(given.port, given.tls_port, given.folder))
