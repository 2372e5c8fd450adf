"""Tiers and scopes: which tables are memory, and whose memory is meant.

A tier is one table. Five are known by name; the three that hold memory are on, edges and user profiles are off until a
configuration asks for them. Everything about a tier's columns is introspected later; here stand only the wishes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from coldstore.errors import ConfigError

#: Keys of a document's header; no tier's array may be called like one of them.
RESERVED_ARRAYS = frozenset(
    {
        "format",
        "snapshotAt",
        "uid",
        "workspace",
        "id",
        "kind",
        "label",
        "generator",
        "database",
        "schema",
        "parent",
        "resets",
        "deleted",
        "documents",
        "bundle",
    }
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def camel_case(name: str) -> str:
    """`daily_memories` → `dailyMemories`."""
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


@dataclass(frozen=True, slots=True)
class Tier:
    """One declared tier.

    `table` is spelled as in SQL (`"Weird Sch"."Mem Ories"`). `uid` and `workspace` name columns; None means *the usual one where the
    table has it* (`uid`, `workspace_id`), the empty string *none*. `where` is an SQL condition on the table's rows. `exclude` names
    columns that stay behind.
    """

    name: str
    table: str
    uid: str | None = None
    workspace: str | None = None
    where: str | None = None
    array: str = ""
    exclude: tuple[str, ...] = ()
    enabled: bool = True

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise ConfigError(f"tier name {self.name!r} is not an identifier", hint="Use letters, digits and underscores.")
        if self.name == "deleted":  # where rows are counted by tier, it counts those that an incremental says are gone
            raise ConfigError("no tier can be called 'deleted'", hint="Choose another name, and keep the table's with `table = …`.")
        if not self.array:
            object.__setattr__(self, "array", camel_case(self.name))
        if self.array in RESERVED_ARRAYS or "\n" in self.array:
            raise ConfigError(f"tier {self.name!r} cannot use the array name {self.array!r}", hint="Give it another with `array = …`.")


BUILT_IN: tuple[Tier, ...] = (
    Tier("daily_memories", "daily_memories"),
    Tier("graph_entities", "graph_entities"),
    Tier("graph_edges", "graph_edges", enabled=False),
    Tier("procedural_memory", "procedural_memory"),
    Tier("user_profiles", "user_profiles", enabled=False),
)


def enabled_tiers(tiers: Iterable[Tier]) -> tuple[Tier, ...]:
    """Those that are switched on, or `ConfigError` when none is or two would write the same array."""
    chosen = tuple(t for t in tiers if t.enabled)
    if not chosen:
        raise ConfigError("no tier is enabled", hint="Enable at least one [tiers.NAME] in coldstore.toml.")
    seen: dict[str, str] = {}
    for tier in chosen:
        if tier.array in seen:
            raise ConfigError(f"tiers {seen[tier.array]!r} and {tier.name!r} both write the array {tier.array!r}")
        seen[tier.array] = tier.name
    return chosen


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose memory: everybody, one user or one workspace."""

    kind: Literal["all", "uid", "workspace"] = "all"
    value: str = field(default="")

    @classmethod
    def user(cls, uid: str) -> Scope:
        return cls("uid", uid)

    @classmethod
    def of_workspace(cls, workspace: str) -> Scope:
        return cls("workspace", workspace)

    @classmethod
    def of(cls, *, uid: str | None = None, workspace: str | None = None) -> Scope:
        """The user's, else the workspace's, else everybody's."""
        if uid is not None:
            return cls.user(uid)
        return cls() if workspace is None else cls.of_workspace(workspace)

    @property
    def uid(self) -> str | None:
        return self.value if self.kind == "uid" else None

    @property
    def workspace(self) -> str | None:
        return self.value if self.kind == "workspace" else None

    def __str__(self) -> str:
        return {"all": "everybody", "uid": f"user {self.value!r}", "workspace": f"workspace {self.value!r}"}[self.kind]


EVERYBODY = Scope()
