"""The pages of `docs/reference/`, written from the program itself.

    python docs/generate.py            writes them
    python docs/generate.py --check    writes nothing; exit code 1 and a sentence for each page that is out of date

Nothing is taken from `--help`, which is laid out for a terminal: the commands' signatures, the settings' fields and the tree of errors are
read as Python values, so the pages are the same on every machine. What the program does not say about itself stands in the tables
below, and a name that is missing there is an error: a setting cannot go undocumented.
"""

# ruff: noqa: INP001  a script, and no package
from __future__ import annotations

import inspect
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from coldstore import cli, config, errors
from coldstore.errors import ColdStoreError
from coldstore.tiers import BUILT_IN

cli.load()
FOLDER = Path(__file__).resolve().parent / "reference"
NOTICE = "<!-- Written by docs/generate.py from the program: change that, then run `make docs`. -->"

TIER_KEYS = {
    "table": "The table or view, spelled as in SQL. Default: the tier's name.",
    "uid": "Column that says which user a row belongs to; `false`: none. Default: `uid`, where the table has such a column.",
    "workspace": "Column that says which workspace a row belongs to; `false`: none. Default: `workspace_id`, where there is such a column.",
    "where": "SQL condition: only rows for which it is true are memory.",
    "array": "Name of the tier's array in a document. Default: the tier's name in camelCase.",
    "exclude": "Columns that stay behind.",
    "enabled": "`false` switches the tier off, `true` one of the built-in ones on.",
}
OTHER_VARIABLES = {
    "COLD_STORE_AGENT": "The agent of `coldstore vault`, instead of `--agent`.",
    "COLD_STORE_DRILL_URL": "The server of `coldstore drill`, instead of `--to`.",
    "COLD_STORE_DEBUG": "Any value: print the traceback of an error as well.",
    "COLD_STORE_TARGET_URL": "The target of `coldstore restore`, instead of `--to`.",
}


# --- Markdown ----------------------------------------------------------------------------------------------------------------------


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(head)
    yield _row(names)
    yield _row(["---"] * len(names))
    yield from map(_row, rows)
    yield ""


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _code(text: object) -> str:
    return f"`{text}`"


def _page(title: str, lines: Iterable[str]) -> str:
    return "\n".join([NOTICE, "", f"# {title}", "", *lines]).rstrip("\n") + "\n"


# --- command line ------------------------------------------------------------------------------------------------------------------


def commands() -> dict[str, Callable[..., Any]]:
    """Every command by its name, in the order of `coldstore --help`, those of groups last."""
    found = {}
    groups = [("", cli.app), *((f"{g.typer_instance.info.name} ", g.typer_instance) for g in cli.app.registered_groups if g.typer_instance)]
    for before, group in groups:
        own = group.registered_callback
        if before and own and own.callback:  # a group that does something by itself
            found[before.strip()] = own.callback
        for info in group.registered_commands:
            assert info.callback is not None  # noqa: S101
            found[before + (info.name or info.callback.__name__.replace("_", "-"))] = info.callback
    return found


def parameters(callback: Callable[..., Any]) -> list[tuple[str, Any, Any, ArgumentInfo | OptionInfo]]:
    """(name, type, default, Typer's own description) of each argument and option."""
    hints = get_type_hints(callback, include_extras=True)
    found = []
    for name, parameter in inspect.signature(callback).parameters.items():
        if hints[name] is typer.Context:
            continue
        kind, info = get_args(hints[name])[:2]
        assert get_origin(hints[name]) is Annotated  # noqa: S101
        found.append((name, kind, parameter.default, info))
    return found


def option_name(name: str, info: ArgumentInfo | OptionInfo) -> str:
    """The name that was given, which Typer keeps as the default until it builds the command, or the parameter's own."""
    given = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str) and d.startswith("--")]
    return given[0] if given else f"--{name.replace('_', '-')}"


def cli_page() -> str:
    return _page("Command line", _cli_lines())


def _cli_lines() -> Iterator[str]:
    yield "```"
    yield "coldstore COMMAND [ARGUMENT] [OPTION ...]"
    yield "```"
    yield ""
    yield "`python -m coldstore` is the same program. With `--json` a command prints one JSON value on standard output; an error is then"
    yield "one JSON object on standard error. Progress is drawn on a terminal only, on standard error. What an exit code means stands in"
    yield "[errors.md](errors.md), what can be configured in [configuration.md](configuration.md)."
    yield ""
    yield from _table(
        ["Command", "What it does"],
        (
            [f"[`{name}`](#coldstore-{name.replace(' ', '-')})", _first_sentence(_paragraphs(callback)[0])]
            for name, callback in commands().items()
        ),
    )
    callback = cli.app.registered_callback
    if callback and callback.callback:
        yield from _options(parameters(callback.callback))
    for name, command in commands().items():
        yield f"## coldstore {name}"
        yield ""
        yield from _command(name, command)


def _command(name: str, callback: Callable[..., Any]) -> Iterator[str]:
    found = parameters(callback)
    arguments = [p for p in found if isinstance(p[3], ArgumentInfo)]
    options = [p for p in found if isinstance(p[3], OptionInfo)]
    required = [f"{option_name(n, i)} {_value(k)}" for n, k, default, i in options if default is inspect.Parameter.empty]
    usage = ["coldstore", name, *(str(i.metavar or n.upper()) for n, _, _, i in arguments), *required, "[OPTION ...]"]
    yield "```"
    yield " ".join(usage)
    yield "```"
    yield ""
    for paragraph in _paragraphs(callback):
        yield paragraph
        yield ""
    if arguments:
        yield from _table(["Argument", "Meaning"], ([_code(i.metavar or n.upper()), i.help or ""] for n, _, _, i in arguments))
    yield from _options(options)


def _options(found: list[tuple[str, Any, Any, Any]]) -> Iterator[str]:
    yield from _table(
        ["Option", "Default", "Meaning"],
        ([_code(f"{option_name(n, i)} {_value(k)}".strip()), _default(default), _meaning(i)] for n, k, default, i in found),
    )


def _paragraphs(callback: Callable[..., Any]) -> list[str]:
    """The docstring, its lines joined."""
    return [" ".join(paragraph.split()) for paragraph in (inspect.getdoc(callback) or "").split("\n\n")]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


def _value(kind: Any) -> str:
    """What follows the option's name; nothing for a flag."""
    kind = _bare(kind)
    return {bool: "", str: "TEXT", Path: "PATH", int: "N"}.get(kind, "TEXT")


def _bare(kind: Any) -> Any:
    """`str` of `list[str] | None`."""
    if get_origin(kind) in {Union, UnionType}:
        kind = next(k for k in get_args(kind) if k is not NoneType)
    return get_args(kind)[0] if get_origin(kind) is list else kind


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    return "" if value in {None, False} else _code(value)


def _meaning(info: OptionInfo) -> str:
    text = info.help or ""
    if info.min is not None:
        text += f" At least {info.min}{f', at most {info.max}' if info.max is not None else ''}."
    if info.envvar:
        text += f" Or the variable {_code(info.envvar)}."
    return text


# --- configuration -----------------------------------------------------------------------------------------------------------------

_INTRO = """\
A setting comes from, the first that has it: an option of the command, the environment, the file `coldstore.toml`, the default. The file is
the one of the current folder, or the one that `--config` names. An unknown key, section or `COLD_STORE_…` variable is an error, and
so is a value that cannot be one. An empty variable counts as unset."""

EXAMPLE = """\
[store]
backend = "s3"
bucket = "my-bucket"
prefix = "agents"
region = "eu-central-1"

[store.options]                 # of the storage library; see how-to/storage.md
part_size = 16777216

[snapshot]
compression = "zstd"

[restore]
jobs = 4

[[drill.assert]]                # what `coldstore drill` must find true
name = "alice is there"
sql = "SELECT count(*) > 0 FROM daily_memories WHERE uid = 'uid_alice'"

[tiers.graph_edges]             # a built-in tier that is off by default
enabled = true

[tiers.notes]                   # a table of yours
table = 'app."Agent Notes"'
uid = "user_id"
workspace = false
where = "kind <> 'draft'"
exclude = ["scratch"]"""


def configuration_page() -> str:
    return _page("Configuration", _configuration_lines())


def _configuration_lines() -> Iterator[str]:
    fields = config.Settings.model_fields
    yield from [_INTRO, "", "```toml", EXAMPLE, "```", ""]
    placed = {name for names in config.SECTIONS.values() for name in names}
    alone = [name for name in fields if name not in placed and name != "tiers"]
    yield "## Environment only"
    yield ""
    yield "Secrets do not belong into a file that is kept with the code, so these stand in no section. The credentials of S3 and GCS"
    yield "come the way each cloud's own tools find them."
    yield ""
    yield from _table(["Variable", "Meaning"], [[_code(variable(n)), _described(fields[n])] for n in alone] + _other_variables())
    for section, names in config.SECTIONS.items():
        yield f"## [{section}]"
        yield ""
        yield from _table(
            ["Key", "Variable", "Value", "Default", "Meaning"],
            (
                [
                    _code(config.FILE_KEYS.get(n, n)),
                    _code(variable(n)),
                    _values(fields[n]),
                    _setting_default(fields[n]),
                    _described(fields[n]),
                ]
                for n in names
            ),
        )
    yield "## [tiers.NAME]"
    yield ""
    yield "One section for each tier, beside the built-in ones or over them: what a section does not say of a built-in tier stays. NAME has"
    yield "letters, digits and underscores. A tier that is not built in is on as soon as it has a section. How to declare your own tables:"
    yield "[how-to/any-table.md](../how-to/any-table.md)."
    yield ""
    tier = config.TierSettings.model_fields
    yield from _table(["Key", "Value", "Meaning"], ([_code(n), _values(tier[n]), TIER_KEYS[n]] for n in tier))
    yield "The built-in tiers:"
    yield ""
    yield from _table(
        ["Tier", "Table", "Array", "On"],
        ([_code(t.name), _code(t.table), _code(t.array), "yes" if t.enabled else "no"] for t in BUILT_IN),
    )


def variable(name: str) -> str:
    alias = config.Settings.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else config.PREFIX + name.upper()


def _other_variables() -> list[list[str]]:
    return [[_code(name), OTHER_VARIABLES[name]] for name in sorted(config._OTHER_VARIABLES)]  # noqa: SLF001


def _described(field: FieldInfo) -> str:
    return field.description or ""


def _values(field: FieldInfo) -> str:
    """What may stand there."""
    text = _kind(field.annotation)
    limits = [f"{word} {getattr(m, key)}" for m in field.metadata for key, word in (("ge", "from"), ("le", "to")) if hasattr(m, key)]
    return " ".join([text, *limits])


def _kind(kind: Any) -> str:
    if get_origin(kind) in {Union, UnionType}:
        return " or ".join(_kind(k) for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(_code("false" if v is False else v) for v in get_args(kind))
    if get_origin(kind) is list and get_args(kind)[0] is not str:
        return "list of tables (as a variable: JSON)"
    plain = {str: "text", int: "number", float: "number", bool: "`true`, `false`", SecretStr: "text"}
    return plain.get(kind) or {dict: "table (as a variable: JSON)", list: "list of texts"}[get_origin(kind)]


def _setting_default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "" if value in (None, "", {}) else _code(value)


# --- errors ------------------------------------------------------------------------------------------------------------------------

_TREE_LINE = re.compile(r"── (?P<name>\w+)(?:\s+(?P<code>\d+)(?=\s|$))?\s*(?P<text>.*)")


def errors_page() -> str:
    return _page("Errors and exit codes", _error_lines())


def tree() -> dict[str, str]:
    """Class name → what the module's docstring says of it, in its order. Every class of the module stands there with its exit code."""
    found: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := _TREE_LINE.search(line):
            name = match["name"]
            if match["code"] and int(match["code"]) != getattr(errors, name).exit_code:
                raise SystemExit(f"coldstore/errors.py: the tree gives {name} another exit code than the class")
            found[name] = match["text"] or _words(name)
    missing = sorted({c.__name__ for c in _classes(ColdStoreError)} - found.keys())
    if missing:
        raise SystemExit(f"coldstore/errors.py: {missing[0]} is not in the tree of the module's docstring")
    return found


def _classes(base: type[ColdStoreError]) -> Iterator[type[ColdStoreError]]:
    for found in base.__subclasses__():
        if found.__module__ == errors.__name__:
            yield found
            yield from _classes(found)


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def exit_codes() -> Mapping[int, str]:
    """Exit code → meaning."""
    own = {getattr(errors, name).exit_code: text for name, text in tree().items() if getattr(errors, name).__bases__ == (ColdStoreError,)}
    return {
        0: "done",
        1: "something unforeseen: a defect, no memory left, standard output could not be written; with `diff --exit-code`: they differ",
        **own,
        128 + signal.SIGHUP: "the terminal went away (SIGHUP)",
        128 + signal.SIGINT: "interrupted (Ctrl-C)",
        cli._BROKEN_PIPE: "the reader of the output went away",  # noqa: SLF001
        128 + signal.SIGTERM: "terminated (SIGTERM)",
    }


def _error_lines() -> Iterator[str]:
    yield "An error is one sentence on standard error and a hint, `error: …` and `hint: …`. No error leaves half a snapshot or half a"
    yield "restore."
    yield ""
    yield from _table(["Exit code", "Meaning"], ([str(code), text] for code, text in exit_codes().items()))
    yield "With `--json` the error is one JSON object on standard error:"
    yield ""
    yield from _table(
        ["Member", "Meaning"],
        ([_code(member), ERROR_MEMBERS[member]] for member in ColdStoreError("").as_dict()),
    )
    yield "In Python the same names are the exceptions; those with an indent are kinds of the one above them. All of them are"
    yield "`coldstore.ColdStoreError` and stand in `coldstore.errors`."
    yield ""
    yield from _table(["Error", "Exit code", "Meaning"], (_error_row(name, text) for name, text in tree().items()))


ERROR_MEMBERS = {
    "error": "the error's name, from the table below",
    "message": "the sentence",
    "hint": "what to do about it, or null",
    "op": "what was being done, where it is known",
    "key": "the object in the store, where it is about one",
    "exitCode": "the exit code",
}


def _error_row(name: str, text: str) -> list[str]:
    kind = getattr(errors, name)
    depth = len(kind.__mro__) - len(ColdStoreError.__mro__) - 1
    return [f"{'&emsp;' * depth}{_code(name)}", str(kind.exit_code), text]


# --- writing -----------------------------------------------------------------------------------------------------------------------

PAGES: dict[str, Callable[[], str]] = {"cli.md": cli_page, "configuration.md": configuration_page, "errors.md": errors_page}


def stale() -> list[str]:
    """Names of the pages that are not what the program says now."""
    return [name for name, page in PAGES.items() if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != page()]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python docs/generate.py [--check]\n")
        return 2
    old = stale()
    if not arguments:
        FOLDER.mkdir(exist_ok=True)
        for name in old:
            (FOLDER / name).write_text(PAGES[name](), encoding="utf-8")
            print(f"wrote docs/reference/{name}")
        return 0
    for name in old:
        sys.stderr.write(f"docs/reference/{name} does not say what the program does any more: run `make docs`.\n")
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
