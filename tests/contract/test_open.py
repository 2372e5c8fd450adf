"""From URLs to stores: what is understood, what is refused, what is imported, what is never shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coldstore.errors import ConfigError
from coldstore.storage.generic import FsspecStore
from coldstore.storage.local import LocalStore
from coldstore.storage.open import open_store

ROOT = str(Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        ("/var/cold store", "LocalStore", "file:///var/cold%20store"),
        ("file:///var/coldstore/", "LocalStore", "file:///var/coldstore"),
        ("file:///var/cold%20store", "LocalStore", "file:///var/cold%20store"),
        ("file://localhost/var/x", "LocalStore", "file:///var/x"),
        ("s3://bucket", "S3Store", "s3://bucket"),
        ("s3://bucket/some/prefix/", "S3Store", "s3://bucket/some/prefix"),
        ("s3a://bucket/p", "S3Store", "s3://bucket/p"),
        ("gs://bucket/p", "GcsStore", "gs://bucket/p"),
        ("gcs://bucket", "GcsStore", "gs://bucket"),
        ("memory://somewhere/below", "FsspecStore", "memory://somewhere/below"),
    ],
)
def test_urls(url, kind, shown):
    store = open_store(url, endpoint_url="http://127.0.0.1:9" if url[0] == "g" else None)
    assert (type(store).__name__, store.url) == (kind, shown)
    assert type(open_store(store.url, endpoint_url="http://127.0.0.1:9")) is type(store)
    store.close()


def test_a_bare_path_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store("backups").url == f"file://{tmp_path}/backups"
    assert open_store("~/backups").url == f"file://{tmp_path}/home/backups"
    with open_store("100%").create("k") as writer:
        writer.write(b"x")
    assert (tmp_path / "100%" / "k").read_bytes() == b"x"
    assert isinstance(open_store(open_store("100%").url), LocalStore)
    assert open_store(open_store("100%").url).read("k") == b"x"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "://x",
        "s3://",
        "s3:///prefix",
        "gs://",
        "s3://key:topsecret@bucket/p",
        "s3://localhost:9000/bucket",
        "s3://bucket/a/../b",
        "gs://bucket//b//c",
        "file://host/x",
        "file://relative",
        "nosuchscheme://x",
        "nosuchscheme://user:topsecret@x/y",
        "memory://a/../b",
    ],
)
def test_refused_urls(url):
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert caught.value.hint
    assert "topsecret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("/tmp/x", {"part_size": 1}),
        ("s3://b", {"partsize": 8 * 2**20}),
        ("s3://b", {"part_size": 1}),
        ("s3://b", {"object": {"StorageKlass": "x"}}),
        ("gs://b", {"object": {"StorageClass": "x"}}),
        ("gs://b", {"chunk_size": 1000}),
    ],
)
def test_refused_options(url, options):
    with pytest.raises(ConfigError):
        open_store(url, options=options)
    with pytest.raises(ConfigError):
        open_store(url, checksums="sometimes")


def test_a_password_in_a_url_is_never_shown():
    store = FsspecStore("memory://user:topsecret@host/p")
    assert "topsecret" not in store.url + store.path("k")


def test_memory_without_a_folder():
    store = open_store("memory://")
    with store.create("at-the-root/k") as writer:
        writer.write(b"x")
    assert [o.key for o in store.list("at-the-root/")] == ["at-the-root/k"]
    assert open_store("memory://at-the-root").read("k") == b"x"
    store.delete("at-the-root/k")


def test_a_missing_driver_is_named():
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from coldstore.errors import ConfigError\n"
        "from coldstore.storage.open import open_store\n"
        "try: open_store('s3://bucket')\n"
        "except ConfigError as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "pip install s3fs\n"


def test_a_local_store_imports_no_storage_library(tmp_path):
    code = (
        "import sys\n"
        "from coldstore.storage.open import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "with store.create('k') as writer: writer.write(b'x')\n"
        "store.replace('k', store.read('k')), list(store.list()), store.folders(), store.delete('k')\n"
        "print(sorted({'fsspec', 's3fs', 'gcsfs', 'aiohttp', 'botocore', 'asyncio'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
