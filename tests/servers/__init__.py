"""Real servers for tests and benchmarks: each a context manager, on a free port, with data in a folder of its own, gone with its parent.

    with weed_server() as s3:
        store = open_store(s3.url("prefix"), **s3.arguments())

`weed_server`, `moto_server` (S3), `gcs_server` (GCS), `gcp_kms_server` (Google Cloud KMS), `fault_proxy` (HTTP faults
by rule), `shaped_link` (latency and bandwidth). AWS KMS is `moto_server` too.
"""

from tests.servers.faults import FaultProxy, fault_proxy
from tests.servers.gcp_kms import GcpKms, gcp_kms_server
from tests.servers.gcs import GcsServer, gcs_server
from tests.servers.link import shaped_link
from tests.servers.s3 import S3Server, moto_server, weed_server

__all__ = [
    "FaultProxy",
    "GcpKms",
    "GcsServer",
    "S3Server",
    "fault_proxy",
    "gcp_kms_server",
    "gcs_server",
    "moto_server",
    "shaped_link",
    "weed_server",
]
