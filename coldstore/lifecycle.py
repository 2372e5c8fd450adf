"""Rules for the bucket itself, which knows nothing but names and ages. Pure: a policy goes in, the JSON that S3 and GCS take comes out.

Safe at any time: ending uploads that nobody finished, and removing versions that are no longer current. Expiry by age is not: it knows no
floor, so when snapshots stop being taken it removes the last one too, and it leaves no deletion record. It is there for those who ask for
it, and only of a policy that says no more than an age: counts and labels a bucket cannot follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coldstore.errors import ConfigError
from coldstore.retention import Policy
from coldstore.storage.layout import SNAPSHOTS

UPLOAD_DAYS = 2
NONCURRENT_DAYS = 30
MARGIN_DAYS = 30  # time to notice that nobody prunes any more


@dataclass(frozen=True, slots=True)
class Rules:
    """What the cloud's own tool takes, and what there is to know before it is given to it."""

    configuration: dict[str, Any]
    notes: tuple[str, ...]


def rules(url: str, kind: str | None = None, *, policy: Policy | None = None) -> Rules:
    """The rules for the store at `url`. `kind`: `s3` or `gcs`; `policy`: the one to expire snapshots by, if they shall be expired."""
    scheme, _, rest = url.partition("://")
    kind = kind or _SCHEMES.get(scheme, "")
    if kind not in _KINDS:
        what = f"there is no form {kind!r} of lifecycle rules" if kind else "only a bucket has lifecycle rules"
        raise ConfigError(what, hint="Name a bucket with --store, or say --format s3 or --format gcs.")
    prefix = rest.partition("/")[2].strip("/") if scheme in _SCHEMES else ""
    expire, note = (None, _NO_EXPIRY) if policy is None else _expiry(policy)
    return Rules(_KINDS[kind](f"{prefix}/" if prefix else "", expire=expire), (_REPLACES, note))


_REPLACES = "these rules take the place of all that the bucket has: add those that you want to keep"
_NO_EXPIRY = "no snapshot expires by them: an age alone knows neither floor nor labels; `coldstore prune --yes` does"


def _expiry(policy: Policy) -> tuple[int | None, str]:
    """(days or None, what must be known about it)."""
    if counts := [name for name in ("last", "daily", "weekly", "monthly") if getattr(policy, name)]:
        return None, f"no snapshot expires by them: {', '.join(counts)} cannot be said by an age"
    if policy.labels:
        return None, "no snapshot expires by them: labelled ones are kept, and a bucket knows no labels (set `labels = false`)"
    days = policy.days + MARGIN_DAYS
    return days, (
        f"after {days} days ({policy.days} and a margin of {MARGIN_DAYS}) every snapshot goes, the newest too: a bucket knows no floor,"
        " and `coldstore verify --all` finds no record of it"
    )


def s3(prefix: str, *, expire: int | None) -> dict[str, Any]:
    """What `put-bucket-lifecycle-configuration` takes. `prefix` is the store's, empty or ending in `/`; `expire`: days."""
    below, snapshots = {"Prefix": prefix}, {"Prefix": prefix + SNAPSHOTS}
    rules: list[dict[str, Any]] = [
        {"ID": "coldstore-uploads", "Filter": below, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UPLOAD_DAYS}},
        {"ID": "coldstore-noncurrent", "Filter": below, "NoncurrentVersionExpiration": {"NoncurrentDays": NONCURRENT_DAYS}},
    ]
    if expire is not None:
        rules.append({"ID": "coldstore-expiry", "Filter": snapshots, "Expiration": {"Days": expire}})
    return {"Rules": [{**rule, "Status": "Enabled"} for rule in rules]}


def gcs(prefix: str, *, expire: int | None) -> dict[str, Any]:
    """What `--lifecycle-file` takes; as `s3`."""

    def rule(action: str, below: str, **condition: Any) -> dict[str, Any]:
        return {"action": {"type": action}, "condition": {**condition, **({"matchesPrefix": [below]} if below else {})}}

    rules = [
        rule("AbortIncompleteMultipartUpload", prefix, age=UPLOAD_DAYS),
        rule("Delete", prefix, daysSinceNoncurrentTime=NONCURRENT_DAYS),
    ]
    if expire is not None:
        rules.append(rule("Delete", prefix + SNAPSHOTS, age=expire, isLive=True))
    return {"lifecycle": {"rule": rules}}


_KINDS = {"s3": s3, "gcs": gcs}
_SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
