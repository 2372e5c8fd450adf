"""What goes in and out, for OpenAPI. Bodies that come in are checked against these and unknown members refused; what goes out is written
from the values of the library themselves, which have the same keys as the command line's `--json`."""

from __future__ import annotations

from datetime import date, datetime
from itertools import combinations
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel

# Postgres text holds no NUL. No name is that long; a row of the list of runs has it whole.
Name = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00]+$")]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel, hide_input_in_errors=True)


class _Out(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


_TEXT = {"type": "string"}
_YES = {"const": True}


def _given(**members: dict[str, Any]) -> Any:
    """JSON Schema for: these members are there, and each is like that."""
    return {"required": list(members), "properties": members}


def _not_both(**members: dict[str, Any]) -> list[Any]:
    """For `allOf`: no two of them are given."""
    return [{"not": _given(**dict(pair))} for pair in combinations(members.items(), 2)]


_ONE_SCOPE = _not_both(uid=_TEXT, workspace=_TEXT)


class ScopedRequest(_In):
    """One user's, one workspace's or, with neither, everybody's memory."""

    model_config = ConfigDict(json_schema_extra={"allOf": _ONE_SCOPE})

    uid: Name | None = Field(default=None, description="Only this user's memory.")
    workspace: Name | None = Field(default=None, description="Only this workspace's memory.")

    @model_validator(mode="after")
    def _one(self) -> ScopedRequest:
        if self.uid is not None and self.workspace is not None:
            raise ValueError("choose one of uid and workspace")
        return self


class SnapshotRequest(ScopedRequest):
    label: Name | None = Field(default=None, description="Name of the snapshot.")
    kind: Literal["full", "incremental"] = Field(default="full", description="Everything, or what changed since the one before.")
    auto_full: bool = Field(default=False, description="A full one, where an incremental one has nothing to build on.")
    accept: bool = Field(default=False, description="Good, even if it holds far less than the one before.")


class Drilled(_Out):
    at: str
    proven: bool


class Snapshot(_Out):
    """A snapshot, as `coldstore list --json` has it."""

    id: str
    path: str
    manifest: str
    uid: str | None
    workspace: str | None
    kind: str
    label: str | None
    snapshot_at: str
    rows: dict[str, int]
    bytes: int
    stored_bytes: int
    sha256: str
    codec: str
    omitted_tiers: list[str]
    seconds: float
    sealed: bool
    signed_by: str | None
    retained_until: str | None
    suspect: str | None
    parent: str | None
    built_from: str | None
    last_proven: str | None
    last_drill: Drilled | None


class Unchanged(_Out):
    """Nothing changed since the newest snapshot, `parent`, and nothing was written."""

    id: None
    unchanged: bool
    parent: str


class Accepted(_Out):
    """The operation goes on; the run tells how."""

    run: str
    url: str


class RunProgress(_Out):
    phase: str | None
    rows: int
    bytes: int


class Run(_Out):
    """A run, as `coldstore runs --json` has it. `progress`: of one that is under way in this process."""

    id: str
    kind: str
    trigger: str
    scope: Literal["all", "uid", "workspace"]
    uid: str | None
    workspace: str | None
    state: Literal["queued", "running", "succeeded", "failed", "skipped"]
    schedule: str | None
    slot: datetime | None
    started_at: datetime
    finished_at: datetime | None
    heartbeat_at: datetime
    seconds: float | None
    snapshot_id: str | None
    rows: int | None
    bytes: int | None
    error: str | None
    details: dict[str, Any]
    progress: RunProgress | None = None


class Runs(_Out):
    """A page, newest first. `next`: the address of the next one."""

    runs: list[Run]
    next: str | None


class InvalidPart(_Out):
    where: str
    message: str


class Problem(_Out):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    hint: str | None = None
    request_id: str | None = None
    errors: list[InvalidPart] | None = None


# --- what there is -----------------------------------------------------------------------------------------------------------------


def _day(text: str) -> str:
    date.fromisoformat(text)
    return text


_DAY = StringConstraints(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$")
#: A UTC day.
Day = Annotated[str, _DAY, AfterValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]
SnapshotId = Annotated[str, Path(description="A snapshot's id, as the list shows it: memory-all-1740621600000.")]


class SnapshotQuery(BaseModel):
    """Which snapshots. A parameter that is not known is refused: a filter that is silently ignored shows everybody's."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    uid: Name | None = Field(default=None, description="Only this user's.")
    workspace: Name | None = Field(default=None, description="Only this workspace's.")
    everybody: bool = Field(default=False, description="Only those of everybody.")
    date: Day | None = Field(default=None, description="Only of this UTC day, 2026-02-26.")
    label: Name | None = Field(default=None, description="Only with this label.")
    kind: Literal["full", "incremental", "documents"] | None = Field(default=None, description="Only of this kind.")
    limit: int = Field(50, ge=1, le=1000, description="No more than this many.")
    cursor: Annotated[str, StringConstraints(pattern=r"^memory-[A-Za-z0-9._@+%~-]+-[0-9]{1,14}$", max_length=255)] | None = Field(
        None, description="The id where the page before ended; `next` has it."
    )

    @model_validator(mode="after")
    def _one(self) -> SnapshotQuery:
        if sum([self.uid is not None, self.workspace is not None, self.everybody]) > 1:
            raise ValueError("choose one of uid, workspace and everybody")
        return self


class Damaged(_Out):
    """A snapshot whose manifest cannot be read."""

    id: str
    error: str
    message: str


class SnapshotPage(_Out):
    """A page, newest first. `next`: the address of the next one."""

    snapshots: list[Snapshot | Damaged]
    next: str | None


class TierSummary(_Out):
    tier: str
    array: str
    rows: int
    digest: str


class Manifest(_Out):
    """Everything the manifest says, as `coldstore show --json` has it; docs/FORMAT.md says what each member means."""

    model_config = ConfigDict(alias_generator=to_camel, extra="allow")

    format: str
    id: str
    snapshot_at: str
    uid: str | None
    workspace: str | None
    kind: str
    label: str | None
    document: str
    codec: str
    bytes: int
    stored_bytes: int
    sha256: str
    plain_sha256: str
    tiers: list[TierSummary]
    frames: list[dict[str, Any]]
    seconds: float
    checksum: str


class Health(_Out):
    status: Literal["ok"]


# --- back, and proof ---------------------------------------------------------------------------------------------------------------


class RestoreRequest(ScopedRequest):
    """What to bring back, whose, and where to. Without `snapshot` and `label` it is the newest snapshot of everybody."""

    model_config = ConfigDict(json_schema_extra={"allOf": [*_ONE_SCOPE, *_not_both(snapshot=_TEXT, latest=_YES, label=_TEXT)]})

    snapshot: Name | None = Field(None, description="A snapshot's id.")
    latest: bool = Field(False, description="The newest one. This is the default.")
    label: Name | None = Field(None, description="The newest one with this label.")
    target: Name = Field(description="The name of a database in `[server.targets]`. An address is not taken.")
    mode: Literal["fresh", "replace", "merge"] = Field("fresh", description="As `coldstore restore` has it.")
    on_conflict: Literal["fail", "skip", "update"] = Field("fail", description="With the mode merge.")
    tiers: list[Name] = Field(default_factory=list, max_length=100, description="Only these tiers.")
    allow_missing_columns: bool = Field(False, description="Leave out values whose column the target lacks.")
    dry_run: bool = Field(False, description="Say what would happen, and change nothing.")

    @model_validator(mode="after")
    def _which(self) -> RestoreRequest:
        if sum([self.snapshot is not None, self.latest, self.label is not None]) > 1:
            raise ValueError("choose one of snapshot, latest and label")
        return self


class RestoreReport(_Out):
    """As `coldstore restore --json` has it."""

    id: str
    snapshot_at: str | None
    uid: str | None
    workspace: str | None
    target: str
    mode: str
    dry_run: bool
    rows: dict[str, int]
    tables: list[dict[str, Any]]
    notes: list[str]
    steps: list[dict[str, Any]]
    verified: Literal["content", "counts"] | None
    changes: list[dict[str, Any]] | None
    seconds: float


def _whole(value: object) -> object:
    """To JSON, 7.0 is an integer as well."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class VerifyRequest(_In):
    """Which snapshots, and how thoroughly."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [_given(snapshot=_TEXT), _given(all=_YES), _given(since=_TEXT)],
            "allOf": _not_both(deep=_YES, sample={"type": "number"}),
        }
    )

    snapshot: Name | None = Field(None, description="A snapshot's id.")
    all: bool = Field(False, description="Every one in the store, and objects that are no snapshot's.")
    since: Day | None = Field(None, description="Those since this UTC day.")
    deep: bool = Field(False, description="Read every byte.")
    sample: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Read this share of the frames: 0.05.")
    seed: Annotated[int, Field(ge=0, lt=1 << 53), BeforeValidator(_whole)] | None = Field(
        default=None, description="Of the sample, to take the same again."
    )

    @model_validator(mode="after")
    def _which(self) -> VerifyRequest:
        if sum([self.snapshot is not None, self.all, self.since is not None]) != 1:
            raise ValueError("say what to verify: one of snapshot, all and since")
        if self.deep and self.sample is not None:
            raise ValueError("choose one of deep and sample")
        return self


class Verdict(_Out):
    id: str
    ok: bool
    state: Literal["ok", "damaged", "untrusted", "unopened"]
    deep: bool
    rows: int
    bytes: int
    frames_read: int
    problems: list[str]
    notes: list[str]


class Verification(_Out):
    """`ok`: nothing is wrong with any of those that were `checked`. `results` and `orphans` end after a thousand, what is wrong first."""

    ok: bool
    checked: int
    states: dict[str, int]
    results: list[Verdict]
    orphans: list[str]
    sample: float | None = None
    seed: int | None = None
