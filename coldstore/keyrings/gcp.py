"""The key ring of Google Cloud KMS: the key never leaves it, and its log shows who opened what.

Refuses answers whose checksums do not fit what was sent or received: what was garbled on the way would be a snapshot that never opens. The
snapshot's id goes along as additional authenticated data. What stands in the manifest is the name of the key's version.

Requests of the REST interface are made here with the credentials that google-auth finds; Google's own client would bring gRPC with it.
Nothing is asked before `wrap` or `unwrap`. An endpoint without TLS is an emulator: it gets no credentials.
"""

from __future__ import annotations

import base64
import json
from functools import cached_property, partial
from typing import Any

import google_crc32c

from coldstore.document.model import WrappedKey
from coldstore.errors import KeyRetired, KeyRingError, KeyRingUnavailable, WrongKey
from coldstore.keyrings.ring import CHANGED, not_in, to_bytes, to_text

ENDPOINT = "https://cloudkms.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/cloudkms"
_VERSIONS = "/cryptoKeyVersions/"
# 3 attempts of at most 5 + 10 seconds: a KMS that is down ends a run in less than a minute.
_ATTEMPTS, _TIMEOUT = 3, (5, 10)
_WORTH_REPEATING = (429, 500, 502, 503, 504)
_ROLES = {"encrypt": "roles/cloudkms.cryptoKeyEncrypter", "decrypt": "roles/cloudkms.cryptoKeyDecrypter"}


class GcpRing:
    """A `KeyRing` of one CryptoKey: its primary version seals, each of its versions opens what it sealed."""

    def __init__(self, key: str, *, endpoint_url: str | None = None) -> None:
        self.name = "gcp-kms"
        self._key = key
        self._endpoint = (endpoint_url or ENDPOINT).rstrip("/")

    @property
    def key_ids(self) -> tuple[str, ...]:
        return (self._key,)

    def wrap(self, data_key: bytes, *, context: str) -> WrappedKey:
        sent = {**_field("plaintext", data_key), **_field("additionalAuthenticatedData", context.encode())}
        for _ in range(_ATTEMPTS):
            answer = self._ask("encrypt", sent)
            whole = answer.get("verifiedPlaintextCrc32c") and answer.get("verifiedAdditionalAuthenticatedDataCrc32c")
            if whole and (sealed := _intact(answer, "ciphertext")):
                return WrappedKey(ring=self.name, key=str(answer.get("name", self._key)), wrapped=to_text(sealed))
        raise self._garbled("encrypt")

    def unwrap(self, wrapped: WrappedKey, *, context: str) -> bytes:
        if wrapped.key.partition(_VERSIONS)[0] != self._key:
            raise not_in(self, wrapped)
        sent = {**_field("ciphertext", to_bytes(wrapped)), **_field("additionalAuthenticatedData", context.encode())}
        for _ in range(_ATTEMPTS):
            if plain := _intact(self._ask("decrypt", sent, sealed_for=wrapped.key), "plaintext"):
                return plain
        raise self._garbled("decrypt")

    def _garbled(self, operation: str) -> KeyRingUnavailable:
        return KeyRingUnavailable(
            f"what Google Cloud KMS was asked to {operation} with {self._key} was garbled on the way, again and again",
            hint="Look for a proxy in between that changes requests, then run it again.",
        )

    def _ask(self, operation: str, sent: dict[str, str], *, sealed_for: str | None = None) -> dict[str, Any]:
        url = f"{self._endpoint}/v1/{self._key}:{operation}"
        try:
            reply = self._session.post(url, json=sent, headers=self._credentials(url), timeout=_TIMEOUT, allow_redirects=False)
        except Exception as exc:
            raise self._unreachable(exc, operation) from exc
        answer = _object(reply.content)
        if reply.status_code == 200:
            return answer
        raise self._refused(reply.status_code, answer.get("error"), operation, sealed_for)

    @cached_property
    def _session(self) -> Any:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3 import Retry

        session = requests.Session()
        retry = Retry(
            total=_ATTEMPTS - 1,
            status_forcelist=_WORTH_REPEATING,
            allowed_methods=None,
            backoff_factor=0.2,
            raise_on_status=False,
            respect_retry_after_header=False,  # it may name any time
        )
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        return session

    def _credentials(self, url: str) -> dict[str, str]:
        headers: dict[str, str] = {}
        if url.startswith("https://"):
            from google.auth.transport.requests import Request

            self._found.before_request(partial(Request(self._session), timeout=_TIMEOUT), "POST", url, headers)
        return headers

    @cached_property
    def _found(self) -> Any:
        import google.auth

        return google.auth.default(scopes=[_SCOPE])[0]

    def _unreachable(self, exc: Exception, operation: str) -> KeyRingUnavailable:
        from google.auth.exceptions import DefaultCredentialsError, RefreshError

        if isinstance(exc, DefaultCredentialsError | RefreshError):
            return KeyRingUnavailable(
                f"there are no usable credentials for the Google Cloud KMS key {self._key}: {next(iter(exc.args), exc)}",
                hint="Set GOOGLE_APPLICATION_CREDENTIALS, or log in: gcloud auth application-default login.",
            )
        return KeyRingUnavailable(
            f"Google Cloud KMS could not be asked to {operation} with {self._key}: {exc}",
            hint="Check the network and the endpoint, then run it again.",
        )

    def _refused(self, status: int, error: Any, operation: str, sealed_for: str | None) -> KeyRingError:
        error = error if isinstance(error, dict) else {}
        code, said = str(error.get("status", "")), str(error.get("message", ""))
        if code == "FAILED_PRECONDITION":
            return self._not_enabled(said, sealed_for)
        if status == 404:
            return self._not_there(said, sealed_for)
        if code == "INVALID_ARGUMENT" and "checksum" in said:
            return self._garbled(operation)
        if code == "INVALID_ARGUMENT":
            misfit = f"the Google Cloud KMS key {self._key} does not open what is said to be sealed for it"
            return WrongKey(misfit, hint=CHANGED) if sealed_for else self._not_for_this(said)
        if status in {401, 403}:
            return KeyRingUnavailable(
                f"may not {operation} with the Google Cloud KMS key {self._key}: {said}",
                hint=f"Grant {_ROLES[operation]} on this key, and check the credentials.",
            )
        return KeyRingUnavailable(
            f"Google Cloud KMS did not {operation} with {self._key}: {status} {said}".rstrip(),
            hint="It may pass: run it again after a while.",
        )

    def _not_enabled(self, said: str, sealed_for: str | None) -> KeyRingError:
        which = sealed_for or f"{self._key}, its primary version,"
        if "DESTROYED" in said:
            hint = (
                "A destroyed version never comes back. Another key ring that the snapshot was sealed for opens it, or use another snapshot."
            )
        elif "DESTROY_SCHEDULED" in said:
            hint = "Before the day of its destruction: gcloud kms keys versions restore, then enable."
        elif "DISABLED" in said:
            hint = "Enable it: gcloud kms keys versions enable. Then run it again."
        else:
            return self._not_for_this(said)
        return KeyRetired(f"the Google Cloud KMS key {which} cannot be used: {said}", hint=hint)

    def _not_for_this(self, said: str) -> WrongKey:
        return WrongKey(
            f"the Google Cloud KMS key {self._key} cannot be used for this: {said}",
            hint="Its purpose must be ENCRYPT_DECRYPT, and it needs a primary version.",
        )

    def _not_there(self, said: str, sealed_for: str | None) -> KeyRingError:
        if sealed_for:  # it was there when this was sealed
            return KeyRetired(
                f"the Google Cloud KMS key {sealed_for} is no longer there: {said}",
                hint="Check the project. Another key ring that the snapshot was sealed for opens it, or use another snapshot.",
            )
        return WrongKey(f"there is no Google Cloud KMS key {self._key}: {said}", hint="Check the project, the location and the names.")


def _field(name: str, data: bytes) -> dict[str, str]:
    """A value and its checksum, as the interface spells them: numbers of 64 bits are strings in its JSON."""
    return {name: to_text(data), f"{name}Crc32c": str(google_crc32c.value(data))}


def _object(content: bytes) -> dict[str, Any]:
    """What a reply says; nothing when it is no JSON object, as from a proxy that answers for itself."""
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _intact(answer: dict[str, Any], name: str) -> bytes | None:
    """A value of the answer, or None when it is not what was sent off."""
    try:
        data = base64.b64decode(answer[name], validate=True)
        return data if int(answer[f"{name}Crc32c"]) == google_crc32c.value(data) else None
    except (KeyError, TypeError, ValueError):
        return None
