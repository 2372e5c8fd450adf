"""The documentation against the program: what a page says can be typed, followed, parsed or run."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer

from coldstore import config, errors
from coldstore.cli import HOMES, app, load
from coldstore.document import model
from coldstore.storage import layout
from coldstore.tiers import EVERYBODY, Scope
from tests import recovering

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = [*(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN = [p for p in PAGES if p.parent != REFERENCE]
load()
COMMANDS = typer.main.get_command(app).commands
#: With those of groups in the place of the groups.
EVERY_COMMAND = {
    " ".join(filter(None, (name, inner))): found
    for name, command in COMMANDS.items()
    for inner, found in getattr(command, "commands", {"": command}).items()
}

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    return [m["text"] for m in _FENCE.finditer(page.read_text(encoding="utf-8")) if m["language"] in languages]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
every_written_page = pytest.mark.parametrize("page", WRITTEN, ids=name_of)


# --- the reference -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_says_what_the_program_does(generate):
    assert generate.stale() == []


@pytest.mark.parametrize("columns", ["20", "400"])
def test_the_reference_does_not_depend_on_the_terminal(columns):
    environment = {**os.environ, "COLUMNS": columns, "LINES": "3"}
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0


def test_a_page_that_is_out_of_date_is_named(generate, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "cli.md").write_text("something else")
    capsys.readouterr()
    assert generate.main(["--check"]) == 1
    assert "docs/reference/cli.md" in capsys.readouterr().err
    assert (tmp_path / "cli.md").read_text() == "something else"


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_option_of_a_command_is_in_the_reference(command):
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    _, _, section = text.partition(f"\n## coldstore {command}\n")
    section = section.partition("\n## ")[0]
    assert section
    # Read off the parser that runs; the page is made from the functions' signatures.
    for parameter in EVERY_COMMAND[command].params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert f"`{option}" in section


def test_every_setting_is_in_the_reference():
    text = (REFERENCE / "configuration.md").read_text(encoding="utf-8")
    fields = config.Settings.model_fields
    names = {field.validation_alias or config.PREFIX + name.upper() for name, field in fields.items() if name != "tiers"}
    for name in names | config._OTHER_VARIABLES | config.TierSettings.model_fields.keys():
        assert f"`{name}`" in text


def test_every_error_is_in_the_reference():
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.ColdStoreError) and kind is not errors.ColdStoreError:
            assert re.search(rf"`{name}` \| {kind.exit_code} \|", text), name


# --- links, commands, configuration ------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.replace("`", "").lower()).replace(" ", "-") for h in headings}


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def segments(line: str) -> Iterator[list[str]]:
    """The simple commands of a shell line: what stands between `|`, `&&`, `;` and redirections."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def typed(page: Path) -> Iterator[list[str]]:
    """Every call of coldstore that a page shows, without the program's name. Only lines of shells: output has none."""
    for text in blocks(page, "", "sh", "bash"):
        for line in text.splitlines():
            if not re.search(r"(^|[\s/])coldstore ", line) or not re.match(r"(\$ |export |coldstore |\S*/coldstore |[\d*]+ [\d*]+ )", line):
                continue
            yield from (words[1:] for words in segments(line) if words and words[0].rpartition("/")[2] == "coldstore")


@every_written_page
def test_commands_can_be_typed(page):
    for command, *arguments in typed(page):
        assert command in COMMANDS, command
        COMMANDS[command].make_context(command, arguments)


def test_every_command_is_where_a_run_looks_for_it():
    homes = {command.callback.__module__.rpartition(".")[2]: set() for command in EVERY_COMMAND.values()}
    for name, command in EVERY_COMMAND.items():
        homes[command.callback.__module__.rpartition(".")[2]].add(name.partition(" ")[0])
    assert homes == {home: set(commands) for home, commands in HOMES.items()}


def test_commands_are_found_at_all():
    found = [" ".join(words) for page in WRITTEN for words in typed(page)]
    assert len(found) > 25
    assert "snapshot --all --json" in found  # behind `&&` and before `>>`
    with pytest.raises(Exception, match="No such option"):
        COMMANDS["list"].make_context("list", ["--nothing"])


@every_written_page
def test_commands_in_a_sentence_exist(page):
    for code in re.findall(r"`coldstore ([^`]+)`", prose(page)):
        command, *words = code.split()
        assert command in COMMANDS, code
        inner = EVERY_COMMAND.get(" ".join([command, *words[:1]]), COMMANDS[command])
        known = {option for parameter in inner.params for option in parameter.opts}
        assert {w for w in words if w.startswith("--")} <= known, code


@every_page
def test_configuration_is_accepted(page, tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith(config.PREFIX)]:
        monkeypatch.delenv(name)
    for number, text in enumerate(blocks(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(text, encoding="utf-8")
        assert tomllib.loads(text)
        config.load(config=path).enabled_tiers()


# --- what pages must not say -------------------------------------------------------------------------------------------------------


@every_page
def test_no_page_knows_the_machine_it_was_written_on(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)/", text)
    assert str(ROOT) not in text


def test_the_readme_names_every_command():
    rows = set(re.findall(r"^\| `coldstore ([a-z-]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert rows == set(COMMANDS)


def test_the_readme_has_few_badges():
    assert len(re.findall(r"!\[", (ROOT / "README.md").read_text(encoding="utf-8"))) <= 3


def test_the_readme_gives_no_figures_that_nobody_measured():
    """Times, rates and ratios outside of shown output stand in the benchmark's results, in the same words."""
    figures = re.findall(r"\d[\d.,]*\s?(?:ms|s|MB/s|GB/s|rows/s|users/s|×|%|times)(?![\w-])", prose(ROOT / "README.md"))
    results = ROOT / "benchmarks" / "RESULTS.md"
    known = results.read_text(encoding="utf-8") if results.is_file() else ""
    assert [f for f in figures if f not in known] == []


# --- the format's page -------------------------------------------------------------------------------------------------------------


def test_the_format_page_names_every_member():
    text = (ROOT / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    kinds = [k for k in vars(model).values() if isinstance(k, type) and hasattr(k, "__struct_encode_fields__")]
    assert len(kinds) > 10
    for kind in kinds:
        for member in kind.__struct_encode_fields__:
            assert f"`{member}`" in text or f"`{member}[]`" in text, f"{kind.__name__}.{member}"


def test_the_format_page_encodes_names_as_the_program_does():
    text = (ROOT / "docs" / "FORMAT.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (everybody|user|workspace)(?: `(.+?)`)? \| `(.+?)` \|$", text, re.MULTILINE)
    assert len(rows) > 6
    for kind, name, encoded in rows:
        scope = {"everybody": EVERYBODY, "user": Scope.user(name), "workspace": Scope.of_workspace(name)}[kind]
        assert layout.scope_name(scope) == encoded
    assert layout.scope_name(Scope.user("x" * 200)) == "x" * 147 + re.search(r"`(~[0-9a-f]{32})`", text)[1]


@every_written_page
def test_calls_of_the_reader_can_be_typed(page):
    for text in blocks(page, "", "sh", "bash"):
        for line in re.findall(r"^\$? ?python (?:docs/)?recover\.py (.+)$", text, re.MULTILINE):
            recovering.module().parsed(shlex.split(line, comments=True))


def test_the_format_page_shows_how_to_call_the_reader():
    assert sum(text.count("python recover.py") for text in blocks(ROOT / "docs" / "FORMAT.md", "sh")) > 4


# --- the tutorial ------------------------------------------------------------------------------------------------------------------


def test_the_tutorials_program_runs(tmp_path):
    """On a Postgres of its own; it takes a few seconds."""
    (text,) = blocks(ROOT / "docs" / "tutorial.md", "python")
    (tmp_path / "first.py").write_text(text, encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith((config.PREFIX, "PG")) and k != "DATABASE_URL"}
    done = subprocess.run([sys.executable, "first.py"], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = next(b for b in blocks(ROOT / "docs" / "tutorial.md", "") if b.startswith("memory-all-") and "procedural_memory" in b)
    without_id = re.compile(r"memory-all-\d+")
    assert without_id.sub("ID", done.stdout) == without_id.sub("ID", shown)
