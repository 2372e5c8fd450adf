"""The API against its own description: requests made from OpenAPI, right and wrong ones, to a real server; every answer must be one that is
described, and every wrong request refused.

`pytest --hypothesis-profile long` asks far more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode

from coldstore.config import build
from coldstore.http.app import make_app
from coldstore.postgres.embedded import EmbeddedPostgres
from tests.integration.served import ADMIN, AT, Served, remember, served, with_list
from tests.postgres_server import TEMPLATE

# What is described does not depend on the settings; nothing is opened before the first request.
DESCRIBED = make_app(build({}, {"api_keys": f"boss:admin:{ADMIN}"})).openapi()
schema = schemathesis.openapi.from_dict(DESCRIBED)
schema.config.generation.update(modes=list(GenerationMode))
_EXAMPLES = max(40, settings.default.max_examples // 50)

# Right in form and refused: what OpenAPI cannot say of parameters together, or of requests one after the other.
BEYOND = ("choose one of uid, workspace and everybody", "this Idempotency-Key came with another request")


@pytest.fixture(scope="module")
def api(postgres: EmbeddedPostgres, tmp_path_factory) -> Iterator[Served]:
    """One server for all requests, with something in its store, and a target that may be restored into."""
    names = ["http_schema_source", "http_schema_target"]
    source, target = (postgres.createdb(name, template=TEMPLATE) for name in names)
    remember(with_list(source), "alice", "bob")
    with served(source, tmp_path_factory.mktemp("schema"), server_targets={"scratch": target}) as found:
        assert found.post("/snapshot").status_code == 201
        yield found
    for name in names:
        postgres.dropdb(name)


@schema.auth()
class Key:
    """So that what is asked without it, or with another, is known to be wrong."""

    def get(self, case, context) -> str:
        return ADMIN

    def set(self, case, data, context) -> None:
        case.headers["x-api-key"] = data


@schema.parametrize()
@settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case, api):
    answer = case.call(base_url=api.url)
    if answer.status_code != 422 or not any(sentence in answer.text for sentence in BEYOND):
        case.validate_response(answer)


def test_the_description_is_that_of_the_server(api):
    assert api.client.get("/openapi.json").json() == DESCRIBED


def test_every_route_is_described():
    described = {(method.upper(), path) for path, methods in DESCRIBED["paths"].items() for method in methods}
    assert described == {
        ("POST", f"{AT}/snapshot"),
        ("GET", f"{AT}/snapshots"),
        ("GET", f"{AT}/snapshots/{{snapshot_id}}"),
        ("DELETE", f"{AT}/snapshots/{{snapshot_id}}"),
        ("GET", f"{AT}/snapshots/{{snapshot_id}}/document"),
        ("HEAD", f"{AT}/snapshots/{{snapshot_id}}/document"),
        ("POST", f"{AT}/restore"),
        ("POST", f"{AT}/verify"),
        ("GET", f"{AT}/runs"),
        ("GET", f"{AT}/runs/{{run}}"),
        ("GET", f"{AT}/runs/{{run}}/events"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


def test_every_operation_says_what_it_is_and_that_it_needs_a_key():
    for path, methods in DESCRIBED["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            if path.startswith(AT):
                assert operation["security"] == [{"key": []}], (method, path)
    names = [o["operationId"] for methods in DESCRIBED["paths"].values() for o in methods.values()]
    assert len(names) == len(set(names))
    assert "HTTPValidationError" not in json.dumps(DESCRIBED)
