"""Whether what is configured keeps its promises: the settings and keys, the database, the store, and whether their clocks agree.

The database is only read, and no row of it. The store is written to below one folder, `doctor/{random}/`, which is removed again. Whatever
is found is a diagnosis and no error; only a configuration that cannot be read at all keeps the doctor from beginning.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, Protocol
from urllib.parse import urlsplit

from coldstore.codec.sign import SigningKey, fits, public_of
from coldstore.config import Settings
from coldstore.diagnosis import Clock, Diagnosis, Doubt, Look, NotChecked, State, diagnose
from coldstore.errors import ConfigError, DoctorFailed, KeyRingError
from coldstore.keyrings.ring import KeyRing
from coldstore.postgres.checkup import DatabaseCheckup
from coldstore.postgres.connect import describe
from coldstore.progress import Progress, silent
from coldstore.storage.checkup import StoreCheckup
from coldstore.storage.store import Store
from coldstore.trust import Trust

#: Seconds by which two clocks may differ. Beyond the second, S3 refuses to talk (it allows 15 minutes) and retentions end too early.
DRIFT = 2.0
TOO_MUCH_DRIFT = 300.0

_WORST_FIRST: tuple[State, ...] = ("failed", "warning", "ok", "skipped")


class Patient(Protocol):
    """What is looked at: a `ColdStore`, or what is like it. Each part is made when it is first asked for, and may then be wrong."""

    @property
    def settings(self) -> Settings: ...

    @property
    def rings(self) -> Sequence[KeyRing]: ...

    @property
    def signer(self) -> SigningKey | None: ...

    @property
    def store(self) -> Store: ...

    def trust(self) -> Trust: ...

    def styled_store(self, path_style: bool) -> Store:
        """The same bucket, its name in the path or in the host's name."""


@dataclass(slots=True)
class Findings:
    """All diagnoses, in the order of the visit."""

    diagnoses: list[Diagnosis] = field(default_factory=list)

    @property
    def state(self) -> State:
        """The worst."""
        return next((s for s in _WORST_FIRST if any(d.state == s for d in self.diagnoses)), "ok")

    def as_dict(self) -> dict[str, Any]:
        return {"state": self.state, "checks": [d.as_dict() for d in self.diagnoses]}


def examine(patient: Patient, *, database: bool = True, store: bool = True, progress: Progress = silent) -> Findings:
    """Look at everything, or leave out the database or the store. No database being configured is a failure only where nothing else is
    looked at."""
    found = Findings()
    clocks: dict[str, Clock] = {"this machine": Clock(0.0, 0.0)}

    def look(looks: Iterable[Look]) -> bool:
        seen = list(diagnose(looks, progress=progress))
        found.diagnoses.extend(seen)
        return all(d.state in {"ok", "warning"} for d in seen)

    look(_configuration(patient.settings))
    look(_keys(patient))
    look(_signatures(patient))
    if database and look([Look("database: address", partial(_database_address, patient.settings, needed=not store))]):
        with closing(DatabaseCheckup(patient.settings.require_database(), patient.settings.enabled_tiers())) as visit:
            look(visit.looks())
            clocks |= {"the database": visit.clock} if visit.clock else {}
    if store and look([Look("store: address", lambda: patient.store.url)]):
        styles = patient.styled_store if patient.store.url.startswith("s3://") and not _numeric(patient.settings.endpoint_url) else None
        with closing(StoreCheckup(patient.store, lock=patient.settings.retain_days is not None, styles=styles)) as place:
            look(place.looks())
            look([Look("store: left as it was", place.clean)])
            clocks |= {"the store": place.clock} if place.clock else {}
    look([Look("clocks", partial(_agreeing, clocks))])
    return found


def _numeric(endpoint_url: str | None) -> bool:
    """Whether the server has a number for a name: no bucket's name can stand before it, and clients do not try."""
    endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return re.fullmatch(r"[\d.]+|.*:.*", urlsplit(endpoint).hostname or "") is not None


# --- settings and keys -------------------------------------------------------------------------------------------------------------


def _configuration(settings: Settings) -> Iterator[Look]:
    yield Look("configuration: tiers", lambda: ", ".join(t.name for t in settings.enabled_tiers()))


def _keys(patient: Patient) -> Iterator[Look]:
    settings = patient.settings
    yield Look("keys: rings", partial(_rings, patient), needed=True)
    for number, spec in enumerate(settings.ring_specs()):
        yield Look(f"keys: {spec.partition(':')[0]}", partial(_ring, patient, number))


def _rings(patient: Patient) -> str:
    if not patient.settings.ring_specs():
        raise NotChecked("no key ring is configured: new snapshots are not sealed")
    count = len(patient.rings)
    sealing = "new snapshots are sealed" if patient.settings.seal else "for reading only: seal is off"
    return f"{count} configured; {sealing}"


def _ring(patient: Patient, number: int) -> str:
    """Wrap a data key that seals nothing, and open it again."""
    ring, data_key = patient.rings[number], secrets.token_bytes(32)
    wrapped = ring.wrap(data_key, context=_NOBODYS)
    if ring.unwrap(wrapped, context=_NOBODYS) != data_key:
        raise KeyRingError(f"the key ring {ring.name} gives back another data key than it was given", hint="Do not seal with it.")
    return f"{wrapped.key} wraps and opens"


_NOBODYS = "doctor"  # no snapshot's id


def _signatures(patient: Patient) -> Iterator[Look]:
    yield Look("signing key", partial(_signs, patient), needed=True)
    yield Look("trusted keys", partial(_trusted, patient))


def _signs(patient: Patient) -> str:
    signer = patient.signer
    if signer is None:
        raise NotChecked("none is configured: new snapshots are not signed")
    if not fits(b"doctor", by=signer.did, signature=signer.sign(b"doctor")):
        raise DoctorFailed(f"{signer.did} does not check its own signature", hint="Make another: `coldstore keygen --sign FILE`.")
    return f"signs as {signer.did}"


def _trusted(patient: Patient) -> str:
    settings = patient.settings
    wrong = [number for number, did in enumerate(settings.trusted_keys, 1) if public_of(did) is None]
    if wrong:
        raise ConfigError(f"number {wrong[0]} of the trusted keys is no did:key of Ed25519", hint="`coldstore keygen --sign` prints one.")
    trust = patient.trust()
    if not trust.keys:
        raise NotChecked("nobody is trusted, and no signature required")
    return f"{len(trust.keys)} trusted; a signature is {'required' if trust.required else 'not required'}"


def _database_address(settings: Settings, *, needed: bool) -> str:
    if settings.database_url is None and not needed:
        raise NotChecked("DATABASE_URL is not set")
    settings.enabled_tiers()
    return describe(settings.require_database())


# --- clocks ------------------------------------------------------------------------------------------------------------------------


def _agreeing(clocks: Mapping[str, Clock]) -> str:
    if len(clocks) < 2:
        raise NotChecked("no other clock was seen")
    apart, one, other = max(_apart(a, b, clocks) for a, b in combinations(clocks, 2))
    said = f"{one} and {other} differ by {apart:.1f} s" if apart >= 0.1 else f"those of {', '.join(clocks)} agree"
    hint = "Run an NTP client on whichever is wrong. Snapshots are dated by the database, retentions end by the store."
    if apart > TOO_MUCH_DRIFT:
        raise DoctorFailed(said, hint=hint)
    if apart > DRIFT:
        raise Doubt(said, hint=hint)
    return said


def _apart(one: str, other: str, clocks: Mapping[str, Clock]) -> tuple[float, str, str]:
    """Seconds by which two clocks differ for certain."""
    a, b = clocks[one], clocks[other]
    return max(0.0, abs(a.ahead - b.ahead) - a.margin - b.margin), one, other
