"""The key ring of AWS KMS: the key never leaves it, and its log shows who opened what.

Refuses to open with any key but the configured one: a manifest's word is not enough, for whoever can write to the store could name a key of
their own. The snapshot's id goes along as encryption context `coldstore-snapshot`. What stands in the manifest is the ARN of the key that
an alias led to when it was sealed. Replicas of a multi-Region key open for each other.

Nothing is asked of AWS before `wrap` or `unwrap`; `kms:Encrypt` is enough to seal, `kms:Decrypt` to open.
"""

from __future__ import annotations

import contextlib
import logging
import re
from functools import cached_property
from typing import Any

from coldstore.document.model import WrappedKey
from coldstore.errors import ConfigError, KeyRetired, KeyRingError, KeyRingUnavailable, WrongKey
from coldstore.keyrings.ring import CHANGED, not_in, to_bytes, to_text

_ARN = re.compile(r"arn:[a-z-]+:kms:(?P<region>[a-z0-9-]+):\d+:(?P<rest>.+)")
_DOES_NOT_FIT = {"IncorrectKeyException", "InvalidCiphertextException", "InvalidKeyUsageException"}
_DENIED = {
    "AccessDeniedException",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "NotAuthorizedException",
    "OptInRequired",
    "UnrecognizedClientException",
}
# 3 attempts of at most 5 + 10 seconds: a KMS that is down ends a run in less than a minute.
_ATTEMPTS, _CONNECT_SECONDS, _READ_SECONDS = 3, 5, 10


class AwsRing:
    """A `KeyRing` of one KMS key, named by its ARN, its id or an alias."""

    def __init__(self, key: str, *, endpoint_url: str | None = None, region: str | None = None) -> None:
        self.name = "aws-kms"
        self._key = key
        self._endpoint_url = endpoint_url
        match = _ARN.fullmatch(key)
        self._region = match["region"] if match else region

    @property
    def key_ids(self) -> tuple[str, ...]:
        return (self._key,)

    def wrap(self, data_key: bytes, *, context: str) -> WrappedKey:
        answer = self._call("encrypt", Plaintext=data_key, EncryptionContext=_bound(context))
        return WrappedKey(ring=self.name, key=str(answer["KeyId"]), wrapped=to_text(answer["CiphertextBlob"]))

    def unwrap(self, wrapped: WrappedKey, *, context: str) -> bytes:
        if not _may_be_one(self._key, wrapped.key):
            raise not_in(self, wrapped)
        answer = self._call("decrypt", sealed_for=wrapped.key, CiphertextBlob=to_bytes(wrapped), EncryptionContext=_bound(context))
        return bytes(answer["Plaintext"])

    @cached_property
    def _client(self) -> Any:
        import botocore.session
        from botocore.config import Config

        for name in ("botocore.endpoint", "botocore.parsers"):  # at DEBUG they write down what is sent and what is answered
            logging.getLogger(name).addFilter(_without_plaintext)
        return botocore.session.Session().create_client(
            "kms",
            region_name=self._region,
            endpoint_url=self._endpoint_url,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
            ),
        )

    def _call(self, operation: str, *, sealed_for: str | None = None, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(KeyId=self._key, **arguments)
        except Exception as exc:
            raise self._translated(exc, operation, sealed_for) from exc
        return answer

    def _translated(self, exc: Exception, operation: str, sealed_for: str | None) -> KeyRingError | ConfigError:
        from botocore import exceptions

        if isinstance(exc, exceptions.ClientError):
            error = exc.response.get("Error", {})
            return self._refused(str(error.get("Code", "")), str(error.get("Message", "")), operation, sealed_for)
        if isinstance(exc, exceptions.NoCredentialsError | exceptions.PartialCredentialsError | exceptions.CredentialRetrievalError):
            return KeyRingUnavailable(
                f"there are no usable credentials for the AWS KMS key {self._key}",
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role, as for the aws command.",
            )
        if isinstance(exc, exceptions.NoRegionError):
            return ConfigError(
                f"the AWS KMS key {self._key} could be in any region",
                hint="Name the key by its ARN, or set the region: AWS_DEFAULT_REGION.",
            )
        if isinstance(exc, exceptions.ProfileNotFound | exceptions.InvalidRegionError | ValueError):  # ValueError: no URL
            return ConfigError(
                f"the AWS KMS key {self._key} cannot be asked: {exc}", hint="Check the profile, the region and the endpoint."
            )
        return KeyRingUnavailable(
            f"AWS KMS could not be asked to {operation} with {self._key}: {exc}",
            hint="Check the network and the endpoint, then run it again.",
        )

    def _refused(self, code: str, said: str, operation: str, sealed_for: str | None) -> KeyRingError:
        if code == "DisabledException":
            return KeyRetired(
                f"the AWS KMS key {self._key} is disabled",
                hint=f"Enable it: aws kms enable-key --key-id {sealed_for or self._key}. Then run it again.",
            )
        if code == "KMSInvalidStateException" and "delet" in said:
            return self._to_be_deleted(sealed_for)
        if code == "NotFoundException":
            return self._not_there(said, sealed_for)
        if code in _DOES_NOT_FIT:
            return self._does_not_fit(code, sealed_for)
        if code in _DENIED:
            return KeyRingUnavailable(
                f"may not {operation} with the AWS KMS key {self._key}: {code} {said}".rstrip(),
                hint=f"Allow kms:{operation.capitalize()} on this key, in its key policy or the role's, and check the credentials.",
            )
        return KeyRingUnavailable(
            f"AWS KMS did not {operation} with {self._key}: {code} {said}".rstrip(), hint="It may pass: run it again after a while."
        )

    def _to_be_deleted(self, sealed_for: str | None) -> KeyRetired:
        day = ""
        with contextlib.suppress(Exception):  # kms:DescribeKey is not needed otherwise, and may not be allowed
            day = f" on {self._client.describe_key(KeyId=self._key)['KeyMetadata']['DeletionDate']:%Y-%m-%d}"
        return KeyRetired(
            f"the AWS KMS key {self._key} is waiting to be deleted{day}; after that nothing sealed for it alone opens again",
            hint=f"Keep it: aws kms cancel-key-deletion, then enable-key, with --key-id {sealed_for or self._key}.",
        )

    def _not_there(self, said: str, sealed_for: str | None) -> KeyRingError:
        if sealed_for == self._key:  # it was there when this was sealed
            return KeyRetired(
                f"the AWS KMS key {self._key} was deleted: {said}",
                hint="A deleted key never comes back. Another key ring that the snapshot was sealed for opens it, or use another snapshot.",
            )
        return WrongKey(f"there is no AWS KMS key {self._key}: {said}", hint="Check its name, the account and the region.")

    def _does_not_fit(self, code: str, sealed_for: str | None) -> WrongKey:
        if code == "InvalidKeyUsageException" or sealed_for is None:
            return WrongKey(f"the AWS KMS key {self._key} is not one that encrypts", hint="It must be symmetric: ENCRYPT_DECRYPT.")
        if code == "IncorrectKeyException":
            return WrongKey(
                f"the AWS KMS key {self._key} is not the one that this was sealed for, which is {sealed_for}",
                hint=f"An alias may have been moved since. Add the key ring aws-kms:{sealed_for}.",
            )
        return WrongKey(f"the AWS KMS key {self._key} does not open what is said to be sealed for it", hint=CHANGED)


def _bound(context: str) -> dict[str, str]:
    return {"coldstore-snapshot": context}


def _may_be_one(configured: str, recorded: str) -> bool:
    """Whether two names can be of one key. An alias can be any key's, and only AWS knows; replicas in other regions share their id."""
    mine, other = (_ARN.sub(r"\g<rest>", name).removeprefix("key/") for name in (configured, recorded))
    return mine == other or mine.startswith("alias/")


def _without_plaintext(record: logging.LogRecord) -> bool:
    return "Plaintext" not in record.getMessage()
