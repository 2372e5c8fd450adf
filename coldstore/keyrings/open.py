"""From what is configured to key rings, and all of them as one: a snapshot is sealed for every ring, and any one of them opens it.

Refuses a spelling that names no ring, and to seal for nobody. Opening asks no KMS; a key file is read, so that a damaged one shows before
anything is sealed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from coldstore.document.model import WrappedKey
from coldstore.errors import ConfigError, KeyMissing, KeyRetired, KeyRingError, KeyRingUnavailable, WrongKey
from coldstore.keyrings.ring import KeyRing, missing

VARIABLE = "COLD_STORE_KEY"
#: The variable by which Google's own tools are told another address of its KMS.
GCP_ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS"

_AWS = re.compile(r"(arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(key|alias)/[A-Za-z0-9/_-]+|alias/[A-Za-z0-9/_-]+|[A-Za-z0-9-]+)")
_GCP = re.compile(r"projects/[^/\s]+/locations/[^/\s]+/keyRings/[^/\s]+/cryptoKeys/[^/\s]+")
_FORMS = (
    f"local (the key in {VARIABLE}), local:FILE, aws-kms:KEY (an ARN, an id or alias/NAME), "
    "gcp-kms:projects/P/locations/L/keyRings/R/cryptoKeys/K."
)
# What may pass by itself comes first, then what can be undone: whoever reads it may still open the snapshot.
_MOST_TELLING = (KeyRingUnavailable, KeyRetired, WrongKey, KeyRingError)


def open_rings(
    specs: Sequence[str], *, environ: Mapping[str, str], kms_endpoint_url: str | None = None, region: str | None = None
) -> tuple[KeyRing, ...]:
    """The rings that `specs` name, in their order. `region` is AWS's; a key's ARN has its own. `kms_endpoint_url` is for the KMS that is
    named; where both are, it is for AWS, and Google's own variable for Google."""
    both = {spec.partition(":")[0] for spec in specs} >= {"aws-kms", "gcp-kms"}
    google = environ.get(GCP_ENDPOINT) or (None if both else kms_endpoint_url)
    return tuple(_open(spec, environ, aws=kms_endpoint_url, google=google, region=region) for spec in specs)


def wrap_for_all(rings: Sequence[KeyRing], data_key: bytes, *, context: str) -> list[WrappedKey]:
    """`data_key` as each ring wraps it. One that cannot is an error: the snapshot would not be what was asked for."""
    if not rings:
        raise ConfigError("nothing would be able to open what is sealed now: no key ring is configured", hint=f"Key rings are {_FORMS}")
    return [ring.wrap(data_key, context=context) for ring in rings]


def unwrap_with_any(rings: Sequence[KeyRing], wrapped: Sequence[WrappedKey], *, context: str) -> bytes:
    """The data key, from the first ring that gives it. Raises `KeyMissing` when none holds a key for it, and otherwise the most telling
    error of those that should have opened it."""
    failures: list[KeyRingError] = []
    for ring in rings:
        for one in wrapped:
            if one.ring != ring.name:
                continue
            try:
                return ring.unwrap(one, context=context)
            except KeyMissing:
                continue
            except KeyRingError as exc:
                failures.append(exc)
    if failures:
        raise min(failures, key=_rank)
    raise missing(wrapped, configured=rings)


def _rank(error: KeyRingError) -> int:
    return next(n for n, kind in enumerate(_MOST_TELLING) if isinstance(error, kind))


def _open(spec: str, environ: Mapping[str, str], *, aws: str | None, google: str | None, region: str | None) -> KeyRing:
    kind, _, rest = spec.partition(":")
    if spec == "local" or (kind == "local" and rest):
        from coldstore.keyrings.local import LocalRing

        return LocalRing.read(Path(rest).expanduser()) if rest else LocalRing.parse(_from(environ), source=VARIABLE)
    if kind == "aws-kms" and _AWS.fullmatch(rest):
        from coldstore.keyrings.aws import AwsRing

        return AwsRing(rest, endpoint_url=aws, region=region)
    if kind == "gcp-kms" and _GCP.fullmatch(rest):
        from coldstore.keyrings.gcp import GcpRing

        return GcpRing(rest, endpoint_url=google)
    # A whole key in the place of a ring's name must not be shown.
    raise ConfigError(f"{_shown(kind)} does not name a key ring", hint=f"Key rings are {_FORMS}")


def _shown(kind: str) -> str:
    return f"`{kind}:…`" if kind in {"local", "aws-kms", "gcp-kms"} else "what is configured"


def _from(environ: Mapping[str, str]) -> str:
    if text := environ.get(VARIABLE, "").strip():
        return text
    raise ConfigError(
        f"the key ring `local` takes its key from {VARIABLE}, which is not set",
        hint="Put a line of a key file there (`coldstore keygen FILE` makes one), or name the file: local:FILE.",
    )
