"""The servers as pytest fixtures: started when a test first asks, one of each per test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import FaultProxy, GcpKms, GcsServer, S3Server, fault_proxy, gcp_kms_server, gcs_server, moto_server, weed_server


@pytest.fixture(scope="session")
def weed() -> Iterator[S3Server]:
    """SeaweedFS: the S3 server to use unless a test needs what it gets wrong."""
    with weed_server() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """moto: concurrent multipart creates; checks no password."""
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def gcs() -> Iterator[GcsServer]:
    """fake-gcs-server behind a proxy that enforces create-only."""
    with gcs_server() as server:
        yield server


@pytest.fixture(scope="session")
def _weed_proxy(weed: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(weed.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def _moto_proxy(moto: S3Server) -> Iterator[FaultProxy]:
    with fault_proxy(moto.endpoint_url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def _gcs_proxy(gcs: GcsServer) -> Iterator[FaultProxy]:
    with fault_proxy(gcs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def weed_faults(_weed_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A fault proxy in front of `weed`, without rules; open stores with `weed.arguments(endpoint_url=weed_faults.url)`."""
    _weed_proxy.clear()
    yield _weed_proxy
    _weed_proxy.clear()


@pytest.fixture
def moto_faults(_moto_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A fault proxy in front of `moto`, without rules."""
    _moto_proxy.clear()
    yield _moto_proxy
    _moto_proxy.clear()


@pytest.fixture
def gcs_faults(_gcs_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A fault proxy in front of `gcs`, without rules."""
    _gcs_proxy.clear()
    yield _gcs_proxy
    _gcs_proxy.clear()


@pytest.fixture(scope="session")
def gcp_kms() -> Iterator[GcpKms]:
    """Our own small Google Cloud KMS."""
    with gcp_kms_server() as server:
        yield server


@pytest.fixture(scope="session")
def _gcp_kms_proxy(gcp_kms: GcpKms) -> Iterator[FaultProxy]:
    with fault_proxy(gcp_kms.plain_url) as proxy:
        yield proxy


@pytest.fixture
def gcp_kms_faults(_gcp_kms_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A fault proxy in front of `gcp_kms`, without rules."""
    _gcp_kms_proxy.clear()
    yield _gcp_kms_proxy
    _gcp_kms_proxy.clear()
