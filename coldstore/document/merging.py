"""An agent's documents in the form that tools which merge the memories of several agents take. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from coldstore.document.notes import encode_note

MERGE_FORMAT = "coldstore-documents/1"


def to_merge_export(documents: Mapping[str, Any], *, agent: str) -> dict[str, Any]:
    """`{format, agent, documents}`, which `json.dumps` takes as it is: text and JSON values stand there themselves, bytes as
    `{"base64": …}`. Raises `InvalidMemory` for what no snapshot would take either."""
    for name, value in documents.items():
        encode_note(name, value)
    return {
        "format": MERGE_FORMAT,
        "agent": agent,
        "documents": {
            name: {"base64": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes | bytearray | memoryview) else value
            for name, value in documents.items()
        },
    }
