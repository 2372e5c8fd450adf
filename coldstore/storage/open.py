"""From a URL to the store it names; the only place that knows which class serves which scheme.

Refuses a URL that carries credentials for S3 or GCS (they belong where each cloud's own tools look for them), a scheme nobody serves, and
options the store does not know. Opening makes no request and imports only the driver it needs: a local folder imports none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from coldstore.errors import ConfigError
from coldstore.storage.local import LocalStore
from coldstore.storage.shared import known_options
from coldstore.storage.store import Store

Checksums = Literal["when_supported", "when_required"]

_HINT = "Use a folder, file:///folder, s3://bucket/prefix, gs://bucket/prefix, or another URL that fsspec understands."


def open_store(
    url: str,
    *,
    region: str | None = None,
    endpoint_url: str | None = None,
    path_style: bool | None = None,
    checksums: Checksums = "when_supported",
    options: Mapping[str, object] | None = None,
) -> Store:
    """The store at `url`: a path, `file://`, `s3://`, `gs://`, `memory://`, or whatever else fsspec speaks.

    `region`, `path_style` and `checksums` are for S3, `endpoint_url` for S3 and for GCS emulators; `options` are the store's own.
    """
    if checksums not in {"when_supported", "when_required"}:
        raise ConfigError(f"checksums is {checksums!r}", hint="It is when_supported or when_required.")
    scheme, separator, rest = url.partition("://")
    if not url or (separator and not scheme):
        raise ConfigError("The store's URL is empty", hint=_HINT)
    if not separator or scheme == "file":
        known_options(options, allowed=frozenset(), scheme="file")
        return LocalStore(_local_path(url))
    if scheme in {"s3", "s3a"}:
        bucket, prefix = _bucket_and_prefix(scheme, rest)
        return _s3(bucket, prefix, region=region, endpoint_url=endpoint_url, path_style=path_style, checksums=checksums, options=options)
    if scheme in {"gs", "gcs"}:
        bucket, prefix = _bucket_and_prefix(scheme, rest)
        return _gcs(bucket, prefix, endpoint_url=endpoint_url, options=options)
    return _generic(url, options=options)


def _local_path(url: str) -> str:
    if "://" not in url:
        return str(Path(url).expanduser())
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise ConfigError("A file URL names an absolute folder of this machine", hint="Write file:///var/coldstore, with three slashes.")
    return unquote(parts.path)


def _bucket_and_prefix(scheme: str, rest: str) -> tuple[str, str]:
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"A {scheme}:// URL holds a bucket and a prefix, and no credentials or port",
            hint="Give credentials the way the cloud's own tools take them, and a server's address as COLD_STORE_ENDPOINT_URL.",
        )
    if not bucket:
        raise ConfigError(f"A {scheme}:// URL needs a bucket", hint=f"Write {scheme}://bucket or {scheme}://bucket/prefix.")
    return bucket, prefix


def _s3(
    bucket: str,
    prefix: str,
    *,
    region: str | None,
    endpoint_url: str | None,
    path_style: bool | None,
    checksums: Checksums,
    options: Mapping[str, object] | None,
) -> Store:
    from coldstore.storage.s3 import S3Store

    try:
        return S3Store(
            bucket, prefix, region=region, endpoint_url=endpoint_url, path_style=path_style, checksums=checksums, options=options
        )
    except ImportError as exc:
        raise _no_driver("s3", "s3fs") from exc


def _gcs(bucket: str, prefix: str, *, endpoint_url: str | None, options: Mapping[str, object] | None) -> Store:
    from coldstore.storage.gcs import GcsStore

    try:
        return GcsStore(bucket, prefix, endpoint_url=endpoint_url, options=options)
    except ImportError as exc:
        raise _no_driver("gs", "gcsfs") from exc


def _generic(url: str, *, options: Mapping[str, object] | None) -> Store:
    try:
        from coldstore.storage.generic import FsspecStore

        return FsspecStore(url, options=options)
    except ImportError as exc:
        raise _no_driver(url.partition("://")[0], "fsspec") from exc


def _no_driver(scheme: str, package: str) -> ConfigError:
    return ConfigError(f"The driver for {scheme}:// is not installed", hint=f"pip install {package}")
