"""Headers and manifests to try things on."""

from __future__ import annotations

import msgspec

from coldstore.document import model

DATABASE = model.Database(system_identifier="7468013241", name="memory", server_version="18.0", snapshot="10:12:11")


def table(array: str, *, uid: str | None = "uid") -> model.Table:
    return model.Table(
        tier=array,
        array=array,
        table=model.Name(schema="public", name=array),
        kind="table",
        columns=[model.Column(name="id", type="bigint", not_null=True), model.Column(name="uid", type="text")],
        constraints=[model.Constraint(name=f"{array}_pkey", kind="p", definition="PRIMARY KEY (id)", columns=["id"])],
        uid_column=uid,
    )


def header(*arrays: str, **changes: object) -> model.Header:
    found = model.Header(
        format=model.FORMAT,
        snapshot_at="2026-02-26T02:00:00.000Z",
        uid=None,
        workspace=None,
        id="memory-all-1772071200000",
        kind="full",
        label=None,
        generator="coldstore test",
        database=DATABASE,
        schema=model.Schema(tables=[table(a) for a in arrays]),
    )
    return msgspec.structs.replace(found, **changes)


def manifest(of: model.Header | None = None, **changes: object) -> model.Manifest:
    found = model.Manifest(
        **msgspec.structs.asdict(of or header("notes")),
        document="snapshots/2026-02-26/memory-all-1772071200000.json",
        codec="none",
        bytes=0,
        stored_bytes=0,
        sha256="0" * 64,
        plain_sha256="0" * 64,
        tiers=[],
        frames=[],
        seconds=0.25,
    )
    return msgspec.structs.replace(found, **changes)
