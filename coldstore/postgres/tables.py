"""coldstore's own tables as SQLModel classes: `coldstore.runs` and `coldstore.migrations`.

Only these two. The tables that hold memory belong to somebody else and are introspected, never modelled. `sql/schema.sql` is the truth;
a test compares these classes with it column by column, so nothing here creates a table.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Integer, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

SCHEMA = "coldstore"


class Run(SQLModel, table=True):
    """One execution: a snapshot, a restore, a verify, a drill, a prune or a compaction."""

    __tablename__ = "runs"
    __table_args__ = {"schema": SCHEMA}

    id: uuid.UUID = Field(default_factory=uuid.uuid4, sa_column=Column(Uuid, primary_key=True, server_default=text("gen_random_uuid()")))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    trigger: str = Field(sa_column=Column(Text, nullable=False))
    scope: str = Field(default="all", sa_column=Column(Text, nullable=False, server_default="all"))
    uid: str | None = Field(default=None, sa_column=Column(Text))
    workspace: str | None = Field(default=None, sa_column=Column(Text))
    state: str = Field(default="running", sa_column=Column(Text, nullable=False, server_default="running"))
    schedule: str | None = Field(default=None, sa_column=Column(Text))
    slot: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True)))
    started_at: datetime | None = Field(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=text("now()"))
    )
    finished_at: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True)))
    heartbeat_at: datetime | None = Field(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=text("now()"))
    )
    snapshot_id: str | None = Field(default=None, sa_column=Column(Text))
    rows: int | None = Field(default=None, sa_column=Column(BigInteger))
    bytes: int | None = Field(default=None, sa_column=Column(BigInteger))
    error: str | None = Field(default=None, sa_column=Column(Text))
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSONB, nullable=False, server_default=text("'{}'")))


class AppliedMigration(SQLModel, table=True):
    """One file of `sql/migrations` that this database has seen."""

    __tablename__ = "migrations"
    __table_args__ = {"schema": SCHEMA}

    version: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    applied_at: datetime | None = Field(
        default=None, sa_column=Column(DateTime(timezone=True), nullable=False, server_default=text("now()"))
    )
