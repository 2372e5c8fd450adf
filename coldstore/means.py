"""What settings name, opened: the store, who can open what is sealed, who signs, whose signature counts. No database is among it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from coldstore.codec.sign import SigningKey
from coldstore.config import Settings
from coldstore.keyrings import open as keyrings
from coldstore.keyrings.files import read_secret
from coldstore.keyrings.ring import KeyRing
from coldstore.storage import open as stores
from coldstore.storage.store import Store
from coldstore.trust import Trust


def open_store(settings: Settings, *, path_style: bool | None, options: Mapping[str, object], url: str | None = None) -> Store:
    """The store at `url`, or where the settings say."""
    return stores.open_store(
        url or settings.store_url(),
        region=settings.region,
        endpoint_url=settings.endpoint_url,
        path_style=path_style,
        checksums=settings.checksums,
        options=options,
    )


def open_rings(settings: Settings) -> tuple[KeyRing, ...]:
    """Who can open what is sealed."""
    environ = {"COLD_STORE_KEY": settings.key.get_secret_value()} if settings.key else {}
    return keyrings.open_rings(
        settings.ring_specs(),
        environ={**os.environ, **environ},
        kms_endpoint_url=settings.kms_endpoint_url,
        region=settings.region,
    )


def open_signer(settings: Settings) -> SigningKey | None:
    """Who signs new snapshots."""
    if settings.signing_key is not None:
        return SigningKey.parse(settings.signing_key.get_secret_value())
    if settings.signing_key_file is not None:
        return SigningKey.parse(read_secret(Path(settings.signing_key_file), what="signing key file"))
    return None


def trust_of(settings: Settings, signer: SigningKey | None, *, required: bool | None = None) -> Trust:
    """Whose signature counts: one's own and those of `trusted_keys`."""
    own = {signer.did} if signer else set()
    return Trust(frozenset({*settings.trusted_keys, *own}), settings.require_signature if required is None else required)
