"""What a schedule asks for: one plain sentence of a small grammar, or a JSON object. Pure; anything else is an error and runs nothing.

    Run a full memory cold-store snapshot for all users.          [Run|Take|Make] [a|an] [full|incremental] [memory] [cold-store]
    Take an incremental snapshot of each user                      snapshot (for|of) (all users|everybody|each user|every user|
    Take a snapshot of user uid_alice                             user X|workspace W)
    Verify all snapshots deeply                                   Verify [all] [the] snapshots [deeply]
    Run a restore drill                                           [Run|Take] [a|the] [restore] drill [the latest snapshot]
    Prune old snapshots                                           Prune [the] [old] snapshots

Capitals do not count, but in names, nor does a full stop at the end; a name that ends in one stands in quotes. The object has the same
words:

    {"action": "snapshot", "of": "all" | "each" | {"uid": "…"} | {"workspace": "…"}, "kind": "full" | "incremental",
     "label": "…", "deep": true, "zone": "Europe/Berlin", "misfire": "once" | "skip"}
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec
from msgspec import structs

from coldstore.cadence import Misfire
from coldstore.errors import ConfigError
from coldstore.tiers import EVERYBODY, Scope

Action = Literal["snapshot", "verify", "drill", "prune"]


class Instruction(msgspec.Struct, frozen=True, kw_only=True):
    """`each`: one document for each user; else `scope`. `zone`: of the cron expression, None for the configured one; so is `misfire`."""

    action: Action
    scope: Scope = EVERYBODY
    each: bool = False
    kind: Literal["full", "incremental"] = "full"
    label: str | None = None
    deep: bool = False
    zone: str | None = None
    misfire: Misfire | None = None


class _Of(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    uid: str | None = None
    workspace: str | None = None


class _Object(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: Action
    of: Literal["all", "each"] | _Of = "all"
    kind: Literal["full", "incremental"] = "full"
    label: str | None = None
    deep: bool = False
    zone: str | None = None
    misfire: Misfire | None = None


_QUOTED = r"(?P<quote>[\"'])(?P<quoted>.+)(?P=quote)"
_SNAPSHOT = re.compile(
    r"(?:(?:run|take|make)\s+)?(?:an?\s+)?(?:(?P<kind>full|incremental)\s+)?(?:memory\s+)?(?:cold-?store\s+)?snapshot\s+(?:for|of)\s+"
    rf"(?:(?P<all>all\s+users|everybody)|(?P<each>(?:each|every)\s+user)|(?P<what>user|workspace)\s+(?:{_QUOTED}|(?P<name>\S+)))",
    re.IGNORECASE,
)
_VERIFY = re.compile(r"verify\s+(?:all\s+)?(?:the\s+)?snapshots(?P<deep>\s+deeply)?", re.IGNORECASE)
_DRILL = re.compile(
    r"(?:(?:run|take|make)\s+)?(?:an?\s+|the\s+)?(?:restore\s+)?drill(?:\s+the\s+(?:latest|newest)\s+snapshot)?", re.IGNORECASE
)
_PRUNE = re.compile(r"prune\s+(?:the\s+)?(?:old\s+)?snapshots", re.IGNORECASE)
_HINT = "Write for example: Run a full memory cold-store snapshot for all users. Or a JSON object with an `action`."


def parse(text: str) -> Instruction:
    """The instruction that `text` gives. Raises `ConfigError`."""
    text = text.strip()
    return _object(text) if text.startswith("{") else _sentence(text.removesuffix("."))


def within(instruction: Instruction, workspace: str | None) -> Instruction:
    """The instruction as a row of `workspace` may give it: everybody is that workspace. Raises `ConfigError` for what reaches further."""
    if workspace is None:
        return instruction
    own = Scope.of_workspace(workspace)
    if instruction.action != "snapshot" or instruction.each or instruction.scope not in {EVERYBODY, own}:
        raise ConfigError(
            f"a schedule of the workspace {workspace!r} takes snapshots of that workspace and nothing else",
            hint="What concerns others, or the whole store, belongs into a row without a workspace_id.",
        )
    return structs.replace(instruction, scope=own)


def _sentence(text: str) -> Instruction:
    if match := _SNAPSHOT.fullmatch(text):
        kind: Literal["full", "incremental"] = "incremental" if (match["kind"] or "").lower() == "incremental" else "full"
        name = match["quoted"] or match["name"]
        scope = EVERYBODY if name is None else Scope.user(name) if match["what"].lower() == "user" else Scope.of_workspace(name)
        return Instruction(action="snapshot", scope=scope, each=bool(match["each"]), kind=kind)
    if match := _VERIFY.fullmatch(text):
        return Instruction(action="verify", deep=bool(match["deep"]))
    if _DRILL.fullmatch(text):
        return Instruction(action="drill")
    if _PRUNE.fullmatch(text):
        return Instruction(action="prune")
    raise ConfigError(f"{text[:200]!r} is no instruction that coldstore knows", hint=_HINT)


def _object(text: str) -> Instruction:
    try:
        given = msgspec.json.decode(text, type=_Object)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ConfigError(f"the instruction is not one that coldstore knows: {exc}", hint=_HINT) from exc
    of = given.of if isinstance(given.of, _Of) else _Of()
    if isinstance(given.of, _Of) and (of.uid is None) == (of.workspace is None):
        raise ConfigError("an instruction's `of` names one uid or one workspace", hint=_HINT)
    return Instruction(
        action=given.action,
        scope=Scope.of(uid=of.uid, workspace=of.workspace),
        each=given.of == "each",
        kind=given.kind,
        label=given.label,
        deep=given.deep,
        zone=given.zone,
        misfire=given.misfire,
    )
