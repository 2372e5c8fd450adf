"""Settings: defaults, then `coldstore.toml`, then the environment, then flags.

An unknown key anywhere is an error that names the nearest known one: a setting that is silently ignored is a backup that is silently
wrong. Secrets are `SecretStr` and never print.

    coldstore.toml      [store] [snapshot] [restore] [drill] … [tiers.NAME]
    environment         DATABASE_URL, COLD_STORE_* (the same names in capitals)
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from pydantic_settings.sources import InitSettingsSource

from coldstore.errors import ConfigError, redact
from coldstore.tiers import BUILT_IN, Tier, enabled_tiers

FILE = "coldstore.toml"
PREFIX = "COLD_STORE_"
DEFAULT_PATH = "coldstore-data"

#: Which settings stand in which section of the file. `database_url` and `api_key` stand in none: secrets belong to the environment.
SECTIONS: dict[str, tuple[str, ...]] = {
    "store": (
        "backend",
        "bucket",
        "prefix",
        "path",
        "url",
        "region",
        "endpoint_url",
        "path_style",
        "checksums",
        "options",
        "retain_days",
        "retain_mode",
    ),
    "snapshot": ("compression", "compression_level", "vectors", "readers", "writers", "frame_mb", "max_fall"),
    "incremental": ("incremental_keep_days",),
    "restore": ("jobs", "maintenance_work_mem"),
    "drill": ("assertion_timeout", "assertions"),
    "runs": ("runs_log", "runs_timeout"),
    "scheduler": (
        "scheduler_surface_id",
        "scheduler_zone",
        "scheduler_misfire",
        "scheduler_grace_seconds",
        "scheduler_tick_seconds",
        "scheduler_stop_seconds",
        "scheduler_attempts",
        "scheduler_parallel",
    ),
    "server": (
        "server_host",
        "server_port",
        "server_wait_seconds",
        "server_stop_seconds",
        "server_workers",
        "server_parallel",
        "server_body_kb",
        "server_rate_per_second",
        "server_rate_burst",
        "server_idempotency_hours",
        "server_keys_file",
        "server_open_metrics",
        "server_targets",
    ),
    "vault": ("vault_quota_mb", "vault_object_mb"),
    "encryption": ("key_rings", "seal", "kms_endpoint_url"),
    "signing": ("signing_key_file", "trusted_keys", "require_signature"),
    "retention": (
        "keep_preset",
        "keep_last",
        "keep_days",
        "keep_daily",
        "keep_weekly",
        "keep_monthly",
        "keep_floor",
        "keep_labels",
        "grace_hours",
    ),
    "status": ("price_gb_month", "price_1k_put", "price_1k_get"),
}
#: What stands in the file under a name that Python would not have.
FILE_KEYS = {"assertions": "assert", "runs_log": "log", "runs_timeout": "timeout"} | {
    f"keep_{name}": name for name in ("preset", "last", "days", "daily", "weekly", "monthly", "floor", "labels")
}
FILE_KEYS |= {name: name.removeprefix("incremental_") for name in SECTIONS["incremental"]}
FILE_KEYS |= {name: name.removeprefix("scheduler_") for name in SECTIONS["scheduler"]}
FILE_KEYS |= {name: name.removeprefix("vault_") for name in SECTIONS["vault"]}
FILE_KEYS |= {name: name.removeprefix("server_") for name in SECTIONS["server"]}
#: Variables of ours that are no settings.
_OTHER_VARIABLES = frozenset({"COLD_STORE_AGENT", "COLD_STORE_DEBUG", "COLD_STORE_DRILL_URL", "COLD_STORE_TARGET_URL"})


def _split(value: object) -> object:
    """`a, b` of the environment as a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


#: A list; in the environment its items stand with commas between them.
Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]


class AssertionSettings(BaseModel):
    """One `[[drill.assert]]`."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    sql: str = Field(min_length=1)


class TierSettings(BaseModel):
    """One `[tiers.NAME]`."""

    model_config = ConfigDict(extra="forbid")

    table: str | None = None
    uid: str | Literal[False] | None = None
    workspace: str | Literal[False] | None = None
    where: str | None = None
    array: str | None = None
    exclude: list[str] | None = None
    enabled: bool | None = None


class Settings(BaseSettings):
    """Everything that can be set. Field descriptions are the reference's text."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", hide_input_in_errors=True, env_ignore_empty=True)

    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL", description="Where memory is read from: a Postgres URL.")
    api_key: SecretStr | None = Field(None, description="A key of the admin HTTP API that may do everything; 16 characters or more.")
    api_keys: SecretStr | None = Field(None, description="Several: `name:role:key`, with commas between; the role is `admin` or `read`.")

    backend: Literal["local", "s3", "gcs"] | None = Field(None, description="Where snapshots go. Default: local.")
    bucket: str | None = Field(None, description="Bucket of s3 or gcs; for local, the folder.")
    prefix: str = Field("", description="Folder inside the bucket.")
    path: str | None = Field(None, description=f"Folder of the local backend. Default: {DEFAULT_PATH}.")
    url: str | None = Field(None, description="Any fsspec URL, instead of backend, bucket, prefix and path.")
    region: str | None = Field(None, description="Region of the bucket.")
    endpoint_url: str | None = Field(None, description="Another S3 or GCS endpoint, for look-alikes and emulators.")
    path_style: bool | None = Field(None, description="S3: bucket in the path instead of the host name.")
    checksums: Literal["when_supported", "when_required"] = Field(
        "when_supported", description="S3: when_required for look-alikes that refuse the newer checksums."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Further options of the storage library.")

    compression: Literal["none", "gzip", "zstd"] = Field("none", description="Codec of the document's frames.")
    compression_level: int | None = Field(None, description="gzip 0 to 3, zstd 1 to 19. Default: 1.")
    vectors: Literal["text", "hex"] = Field("text", description="hex writes embeddings in their binary form: faster and smaller.")
    readers: int = Field(2, ge=1, le=64, description="Connections that read everybody's memory at once.")
    writers: int = Field(4, ge=1, le=64, description="Documents that --each-user writes at once.")
    # A frame is held a few times over (read, joined, compressed, in flight), for each reader: 64 MB of frames is 1 GB of memory.
    frame_mb: int = Field(4, ge=1, le=64, description="Plain megabytes of a frame.")

    max_fall: float = Field(
        0.5, ge=0, le=1, description="Share of rows by which a snapshot may be smaller than the one before and not be suspect."
    )

    incremental_keep_days: int = Field(
        7, ge=1, le=3650, description="Days for which recorded changes wait for the next snapshot of somebody who has none meanwhile."
    )

    jobs: int = Field(2, ge=1, le=64, description="Connections that a restore loads with at once.")
    maintenance_work_mem: str = Field(
        "512MB", pattern=r"^[1-9][0-9]*(kB|MB|GB)$", description="Server memory for each index that a restore builds."
    )

    assertion_timeout: int = Field(60, ge=1, le=86400, description="Seconds that one assertion of a drill may take.")
    assertions: list[AssertionSettings] = Field(
        default_factory=list, description="What a drill must find true: `name`, and `sql` that gives one row with one boolean."
    )

    keep_preset: Literal["free", "pro", "enterprise"] | None = Field(
        None, description="7, 30 or 365 days; what else stands here is over it."
    )
    keep_last: int | None = Field(None, ge=0, description="Keep so many of the newest snapshots of each scope.")
    keep_days: int | None = Field(None, ge=0, le=36500, description="Keep what is younger.")
    keep_daily: int | None = Field(None, ge=0, description="Keep the newest of each of so many days that have one, in UTC.")
    keep_weekly: int | None = Field(None, ge=0, description="The same of weeks, which begin on Monday.")
    keep_monthly: int | None = Field(None, ge=0, description="The same of months.")
    keep_floor: int | None = Field(None, ge=1, description="Keep so many of the newest good ones whatever their age. Default: 3.")
    keep_labels: bool | None = Field(None, description="Keep what has a label. Default: true.")
    # A snapshot in the making is an upload or a document without a manifest: it must be done within this time.
    grace_hours: int = Field(24, ge=1, le=8760, description="Hours after which what a dead process left behind is swept.")

    runs_log: Literal["auto", "required", "off"] = Field(
        "auto", description="auto: the list of runs is written where it is; required: nothing starts without it."
    )
    # Nine heartbeats: a process that is only slow must not be taken for dead.
    runs_timeout: int = Field(90, ge=30, le=86400, description="Seconds without a sign of life after which a run counts as failed.")
    runs_url: SecretStr | None = Field(None, description="Database with the list of runs, where it is not the source.")

    scheduler_surface_id: str = Field("cold-store-cron", min_length=1, description="Which rows of scheduled_agents are coldstore's.")
    scheduler_zone: str = Field("UTC", description="Time zone of cron expressions whose row names none.")
    scheduler_misfire: Literal["once", "skip"] = Field(
        "once", description="Of slots that nobody was there for: once runs the newest, skip none."
    )
    scheduler_grace_seconds: int = Field(60, ge=1, le=86400, description="How late a slot may be begun and still count as on time.")
    scheduler_tick_seconds: int = Field(30, ge=1, le=3600, description="Seconds between two looks at the schedules.")
    scheduler_stop_seconds: int = Field(60, ge=0, le=86400, description="Seconds that a run may go on when the scheduler is stopped.")
    scheduler_attempts: int = Field(3, ge=1, le=100, description="How often a slot is begun when processes die.")
    scheduler_parallel: int = Field(2, ge=1, le=64, description="Runs of one scheduler at a time.")

    server_host: str = Field("127.0.0.1", min_length=1, description="Address to listen at.")
    server_port: int = Field(8000, ge=0, le=65535, description="Port to listen at; 0 takes a free one.")
    server_wait_seconds: float = Field(
        30, ge=0, le=3600, description="Seconds that a request waits for its run before it is told where to look for it."
    )
    server_stop_seconds: int = Field(30, ge=0, le=86400, description="Seconds that a run may go on when the server is stopped.")
    server_workers: int = Field(4, ge=1, le=64, description="Snapshots of one user or workspace at a time.")
    server_parallel: int = Field(2, ge=1, le=64, description="Other runs at a time: snapshots of everybody, restores, verifies.")
    server_body_kb: int = Field(64, ge=1, le=16384, description="Kilobytes that a request's body may have.")
    server_rate_per_second: float = Field(0, ge=0, le=100_000, description="Requests a second that each key may make; 0: any number.")
    server_rate_burst: int = Field(20, ge=1, le=100_000, description="Requests that a key may make at once after a pause.")
    server_idempotency_hours: int = Field(24, ge=1, le=8760, description="Hours for which an Idempotency-Key is remembered.")
    server_keys_file: str | None = Field(None, description="File with API keys: one `name:role:key` a line.")
    server_open_metrics: bool = Field(False, description="Whether /metrics is told without a key.")
    server_targets: dict[str, SecretStr] = Field(
        default_factory=dict, description="Databases that a request may restore into: a name for each URL."
    )

    vault_quota_mb: float | None = Field(None, ge=0, description="Megabytes that one agent's snapshots may take. Default: no quota.")
    vault_object_mb: float | None = Field(
        None, ge=0.1, description="Megabytes of the largest object that the store takes: larger memories are cut into parts."
    )

    key: SecretStr | None = Field(None, description="Keys of the key ring `local`: the text of a key file.")
    key_rings: Names = Field(
        default_factory=list,
        description="Who can open what is sealed: `local`, `local:FILE`, `aws-kms:KEY`, `gcp-kms:KEY`."
        " Default: `local` where COLD_STORE_KEY is set.",
    )
    seal: bool = Field(True, description="Whether new snapshots are sealed. Without key rings none is.")
    kms_endpoint_url: str | None = Field(None, description="Another endpoint of the key service.")

    signing_key: SecretStr | None = Field(None, description="The text of a signing key, instead of a file.")
    signing_key_file: str | None = Field(None, description="File with the key that signs new snapshots.")
    trusted_keys: Names = Field(default_factory=list, description="`did:key` names of those whose signature counts, beside one's own.")
    require_signature: bool = Field(False, description="Refuse to restore what nobody trusted signed.")

    retain_days: int | None = Field(None, ge=1, le=36500, description="Days for which nobody may delete a new snapshot.")
    retain_mode: Literal["governance", "compliance"] = Field(
        "governance", description="compliance: not even the owner of the bucket can shorten it."
    )

    price_gb_month: float = Field(0.023, ge=0, description="Dollars for 10⁹ bytes and a month: what `status` reckons with.")
    price_1k_put: float = Field(0.0004, ge=0, description="Dollars for a thousand requests that write.")
    price_1k_get: float = Field(0.00004, ge=0, description="Dollars for a thousand requests that read.")

    tiers: dict[str, TierSettings] = Field(default_factory=dict, description="Tiers beside or instead of the built-in ones.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 — the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load` passes the file's values under one name; they give way to the environment, flags do not."""
        given = init_settings()
        from_file = given.pop("_file", {})
        return (
            InitSettingsSource(settings_cls, init_kwargs=given),
            env_settings,
            InitSettingsSource(settings_cls, init_kwargs=from_file),
        )

    def store_url(self) -> str:
        """The store's root as one URL."""
        if self.url:
            return self.url
        if self.backend in {"s3", "gcs"}:
            if not self.bucket:
                raise ConfigError(f"the {self.backend} backend needs a bucket", hint="Set COLD_STORE_BUCKET.")
            scheme = "s3" if self.backend == "s3" else "gs"
            return f"{scheme}://{self.bucket}/{self.prefix.strip('/')}".rstrip("/")
        if self.bucket and self.backend is None:
            raise ConfigError("a bucket is set, but not where it is", hint="Set COLD_STORE_BACKEND to s3 or gcs.")
        folder = self.path or self.bucket or DEFAULT_PATH
        if "://" in folder:  # or the store would be a folder called `s3:`
            raise ConfigError("the store's path is a URL, and it must be a folder", hint="Set `url`, or COLD_STORE_URL, instead.")
        return str(Path(folder) / self.prefix.strip("/"))

    def all_tiers(self) -> tuple[Tier, ...]:
        """The built-in tiers with the file's merged over them, the new ones after."""
        merged = {t.name: t for t in BUILT_IN}
        for name, wish in self.tiers.items():
            base = merged.get(name, Tier(name, wish.table or name))
            merged[name] = Tier(
                name=name,
                table=wish.table or base.table,
                uid=_column(wish.uid, base.uid),
                workspace=_column(wish.workspace, base.workspace),
                where=wish.where if wish.where is not None else base.where,
                array=wish.array or base.array,
                exclude=tuple(wish.exclude) if wish.exclude is not None else base.exclude,
                enabled=_enabled(wish, base, built_in=name in {t.name for t in BUILT_IN}),
            )
        return tuple(merged.values())

    def enabled_tiers(self) -> tuple[Tier, ...]:
        return enabled_tiers(self.all_tiers())

    def ring_specs(self) -> tuple[str, ...]:
        """The key rings: those named, or the one whose key the environment holds."""
        return tuple(self.key_rings) or (("local",) if self.key else ())

    def retention(self) -> dict[str, int | bool | str]:
        """`[retention]`, as far as it is set, under the file's names."""
        given = {FILE_KEYS[name]: getattr(self, name) for name in SECTIONS["retention"] if name in FILE_KEYS}
        return {name: value for name, value in given.items() if value is not None}

    def require_database(self) -> str:
        if self.database_url is None:
            raise ConfigError("no database is configured", hint="Set DATABASE_URL=postgresql://user@host:5432/database.")
        return self.database_url.get_secret_value()


def _column(wish: str | Literal[False] | None, base: str | None) -> str | None:
    return "" if wish is False else base if wish is None else wish


def _enabled(wish: TierSettings, base: Tier, *, built_in: bool) -> bool:
    """A tier that the file speaks of is on, unless it says otherwise; a built-in one that is off stays off until it says so."""
    if wish.enabled is not None:
        return wish.enabled
    return base.enabled if built_in else True


def load(*, config: Path | None = None, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process. `config` must exist when it is named; `coldstore.toml` of the current folder need not."""
    _check_environment(os.environ if environ is None else environ)
    path = config or Path(FILE)
    if config is not None and not path.is_file():
        raise ConfigError(f"there is no configuration file {path}", hint="Check --config.")
    from_file = read_file(path) if path.is_file() else {}
    given = {k: v for k, v in (flags or {}).items() if v is not None}
    return build(from_file, given, path=path if from_file else None)


def build(from_file: Mapping[str, Any], flags: Mapping[str, Any], *, path: Path | None = None) -> Settings:
    """Settings from a file's values and from flags, with the environment between them."""
    given = dict(flags)
    if "database_url" in given:
        given["DATABASE_URL"] = given.pop("database_url")
    try:
        return Settings(**{"_file": dict(from_file), **given})
    except ValidationError as exc:
        raise _explain(exc, path, from_file, given) from None
    except SettingsError as exc:  # a variable that should hold JSON; what it holds may be a secret
        name = re.search(r'field "(\w+)"', str(exc))
        raise ConfigError(f"{PREFIX}{name[1].upper() if name else '*'} is not JSON", hint='Write it as {"name": "value"}.') from None


def read_file(path: Path) -> dict[str, Any]:
    """The file's values under the settings' names."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}", hint="See docs/reference/configuration.md.") from exc
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}", hint="Check who may read it.") from exc
    values: dict[str, Any] = {}
    for section, entries in content.items():
        if section == "tiers":
            values["tiers"] = entries
            continue
        if section in Settings.model_fields:
            raise _misplaced(path, section)
        if section not in SECTIONS or not isinstance(entries, dict):
            raise _unknown(f"section [{section}] of {path}", section, [*SECTIONS, "tiers"])
        known = {FILE_KEYS.get(name, name): name for name in SECTIONS[section]}
        for key, value in entries.items():
            if key not in known:
                if key in Settings.model_fields and key not in FILE_KEYS:
                    raise _misplaced(path, key)
                raise _unknown(f"key {key!r} in [{section}] of {path}", key, known)
            values[known[key]] = value
    _refuse_passwords(values.get("server_targets"), path)
    _resolve_paths(values, path.parent)
    return values


def _refuse_passwords(targets: object, path: Path) -> None:
    for name, url in targets.items() if isinstance(targets, dict) else ():
        if isinstance(url, str) and redact(url) != url:
            raise ConfigError(
                f"the target {name!r} in {path} holds a password",
                hint=f"Secrets belong to the environment: set {PREFIX}SERVER_TARGETS, or leave the password to ~/.pgpass.",
            )


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Paths are as the file's author meant them, wherever the program is started."""
    for name in ("path", "signing_key_file", "server_keys_file"):
        if isinstance(values.get(name), str) and "://" not in values[name]:
            values[name] = str(folder / Path(values[name]).expanduser())
    if isinstance(values.get("key_rings"), list):
        values["key_rings"] = [_beside(folder, spec) for spec in values["key_rings"]]


def _beside(folder: Path, spec: object) -> object:
    kind, _, file = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    return f"local:{folder / Path(file).expanduser()}" if kind == "local" and file else spec


def _check_environment(environ: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields if name not in {"database_url", "tiers"}} | _OTHER_VARIABLES
    for name in environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise _unknown(f"environment variable {name}", name, known)


def _misplaced(path: Path, key: str) -> ConfigError:
    """A setting that is known, but not there."""
    section = next((s for s, names in SECTIONS.items() if key in names), None)
    variable = Settings.model_fields[key].validation_alias or PREFIX + key.upper()
    hint = f"It belongs to [{section}]." if section else f"Secrets belong to the environment: set {variable}."
    return ConfigError(f"{key!r} is in the wrong place in {path}", hint=hint)


def _unknown(what: str, name: str, known: Any) -> ConfigError:
    near = get_close_matches(name, sorted(known), n=1)
    return ConfigError(f"unknown {what}", hint=f"Did you mean {near[0]}?" if near else f"Known are {', '.join(sorted(known))}.")


def _explain(exc: ValidationError, path: Path | None, from_file: Mapping[str, Any], flags: Mapping[str, Any]) -> ConfigError:
    """The first thing that is wrong and where it was said, without the value: it may be a secret."""
    error = exc.errors(include_input=False, include_url=False)[0]
    name = str(error["loc"][0])
    where = ".".join(str(part) for part in error["loc"] if part != "str" and not str(part).startswith("literal["))
    if error["type"] == "extra_forbidden":
        kind = AssertionSettings if name == "assertions" else TierSettings
        return _unknown(f"key {where!r} of {path or 'the settings'}", where.rpartition(".")[2], kind.model_fields)
    variable = PREFIX + name.upper()
    if name in flags:
        where = "--" + name.replace("_", "-")
    elif os.environ.get(variable):
        where = variable
    elif name in from_file:
        section = next((f"[{section}] " for section, names in SECTIONS.items() if name in names), "")
        where = f"{section}{where.replace(name, FILE_KEYS.get(name, name), 1)} of {path or 'the settings'}"
    return ConfigError(f"{where}: {error['msg'][:1].lower()}{error['msg'][1:]}", hint="See docs/reference/configuration.md.")
