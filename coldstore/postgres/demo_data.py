"""A believable memory of many users, made up from a seed: for the demo, the tests and the benchmark.

`fill` writes what a few weeks with an assistant leave behind: days with entries, things and how they hang together, habits, profiles.
Each user has a random source of its own, so the same seed gives the same rows, and user 3 is the same person among 10 users as
among 200. `fill_bulk` writes a wished number of bytes with the proportions of a real store and no wish to be read by people.

Both write to the tables of the reference schema, which must be there; they add rows and remove none. Rows go in by `COPY`; the sums of
embeddings are left to pgvector, which adds 1,536 numbers faster than Python does. An HNSW index is dropped for the load and
built again afterwards by its own definition: row by row it would take longer than everything else together.
"""

# ruff: noqa: SIM905  a list of words reads best as a sentence

from __future__ import annotations

import itertools
import json
import random
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from coldstore.errors import ConfigError
from coldstore.postgres.connect import errors_as

DIMENSIONS = 1536
TODAY = date(2026, 2, 26)

_FIRST = (
    "alice bob carol dave erin frank grace henry irene jack karin liam maya noah olga pedro quinn rosa samir tara umar vera wanda xavier "
    "yusuf zoe anton bianca cyrus dana emil farah goran hana ivan jana kofi lena milo nadia oscar paula remy sofia theo ursula viktor willa"
).split()
_LAST = "moreau okafor lindqvist tanaka silva haddad novak brandt castillo iyer osei petrov laurent kowalski".split()
_WORKSPACES = ("acme", "northwind", "lumen-labs", "harbor-health", "fable-studio")
_AGENTS = ("assistant", "research-agent", "inbox-agent", "coding-agent")
_PEOPLE = "Priya Jonas Mei Tomás Aisha Lukas Hannah Diego Fatima Ole Chloé Ravi Björn Ines Kenji Amara Zoë Matteo".split()
_PLACES = "Lisbon|the Berlin office|Kyoto|Oslo|the coffee place on Main Street|Room 4B|Nairobi|the climbing gym|Montréal|home".split("|")
_PROJECTS = (
    "the billing migration|Project Heron|the onboarding flow|the Q3 forecast|the mobile redesign|the data warehouse|the grant proposal|"
    "the search relaunch|the vendor contract|the hiring plan|the thesis chapter|the kitchen renovation|the newsletter|the incident review"
).split("|")
_THINGS = (
    "the invoice export|a failing nightly job|the slide deck|the pricing table|two unit tests|the API key rotation|the flight booking|"
    "the customer interview notes|the staging database|a memory leak|the travel budget|the release notes|the meal plan|the survey results|"
    "the access request|the design tokens|the sourdough starter|the tax form|the retry logic|the audit log"
).split("|")
_TASTES = (
    "short answers without bullet points|dark roast coffee|meetings before noon|window seats|metric units|code in Python with type hints|"
    "vegetarian restaurants|a summary before the details|links to the source|running in the morning|tea over coffee|plain text e-mails|"
    "trains over planes|British spelling|charts with labelled axes|no calls on Fridays"
).split("|")
_REASONS = (
    "because the numbers did not match|so that nothing is lost over the weekend|after the call with legal|since the old way took an hour|"
    "because the client asked twice|before the quarter ends|as agreed in the last review|because the test environment was down|"
    "to keep the diff small|as it blocked two colleagues|because the deadline moved|so the team can sleep"
).split("|")
_TOPICS = ("work", "travel", "health", "family", "code", "finance", "learning", "home")
_TEMPLATES = {
    "conversation": (
        "Asked about {thing}; we settled on {n} options and left the choice to {person}.",
        "Talked through {project} with {person}, {reason}.",
        "Wanted to know why {thing} took {n} minutes longer than in {place}.",
    ),
    "decision": (
        "Decided to move {project} to {day} {reason}.",
        "{person} and the user agreed to drop {thing} from {project}.",
        "Chose the cheaper of {n} offers for {thing}, {reason}.",
    ),
    "preference": (
        "Prefers {taste}.",
        "Mentioned again that {taste} matters more than speed, except when travelling to {place}.",
        "Does not want to be reminded of {thing} before {hour}:00.",
    ),
    "task": (
        "Finish {thing} for {person} by {day}, then update {project}.",
        "Reminder: {thing} is due on {day} at {hour}:{minute:02d}.",
        "Follow up with {person} about ticket #{big}, {reason}.",
    ),
    "fact": (
        "{person} now works from {place} and reviews {project}.",
        "The budget of {project} is {big} euros, of which {n} percent are spent.",
        "{thing} lives in version {n}.{hour} and was last touched in {place}.",
    ),
    "mood": (
        "Sounded relieved once {thing} was done 🎉.",
        "Tired after {n} hours on {project}; kept the answers brief.",
    ),
}
_CATEGORIES = tuple(_TEMPLATES)
_ENTITY_TYPES = {"person": _PEOPLE, "place": _PLACES, "project": _PROJECTS, "topic": _TOPICS, "preference": _TASTES, "artifact": _THINGS}
_RELATIONS = ("works_on", "prefers", "knows", "located_in", "depends_on", "mentions", "part_of")
_PROCEDURES = {
    "workflow": ("weekly report", "release checklist", "expense filing", "trip planning"),
    "rule": ("no calls on Fridays", "ask before sending", "cite sources", "metric units only"),
    "template": ("status e-mail", "meeting notes", "bug report", "thank-you note"),
}

_VECTORS = "pg_temp.coldstore_demo_vectors"
_SPREADS = 64


@dataclass(frozen=True, slots=True)
class Person:
    """One made-up user."""

    number: int
    uid: str
    workspace: str
    agent: str
    name: str


def people(users: int) -> list[Person]:
    """The first `users` of them: `uid_alice`, `uid_bob`, … and with surnames once the first names are used up."""
    found = []
    for number, (first, last) in enumerate(itertools.islice(_names(), users)):
        uid = f"uid_{first}_{last}".rstrip("_")
        workspace, agent = _WORKSPACES[number % len(_WORKSPACES)], _AGENTS[number // 2 % len(_AGENTS)]
        found.append(Person(number, uid, workspace, agent, f"{first} {last}".strip().title()))
    return found


def _names() -> Iterator[tuple[str, str]]:
    for generation in itertools.count():
        for last in ("", *_LAST) if generation == 0 else _LAST:
            for first in _FIRST:
                yield first, last if generation == 0 else f"{last}{generation + 1}"


# -- readable ------------------------------------------------------------------------------------------------------------------------


def fill(
    conn: psycopg.Connection[Any],
    *,
    users: int = 200,
    seed: int = 7,
    embeddings: bool = True,
    days: int = 14,
    entities: int = 6,
    until: date = TODAY,
) -> dict[str, int]:
    """Write the memory of `users` people, all of it or nothing, and return the number of rows by table.

    Each has `days` days that end with `until`, `entities` things in their graph, and the edges, habits and profile that go with it.
    """
    cast = [(person, random.Random(f"{seed}/{person.uid}")) for person in people(users)]  # noqa: S311  made-up data
    with errors_as("write the demo data"), conn.transaction(), _without_vector_indexes(conn):
        counts = {"daily_memories": _copy(conn, _DAILY, (row for who, rng in cast for row in _days(who, rng, days=days, until=until)))}
        nodes = [node for who, rng in cast for node in _entities(who, rng, entities=entities, until=until)]
        counts["graph_entities"] = _copy(conn, _ENTITIES, nodes)
        if embeddings:
            _embed(conn, ids=[node[0] for node in nodes], seed=seed)
        counts["graph_edges"] = _copy(conn, _EDGES, (row for who, rng in cast for row in _edges(who, rng, nodes=nodes, entities=entities)))
        habits = (row for who, rng in cast for row in _procedures(who, rng, until=until))
        counts["procedural_memory"] = _copy(conn, _PROCEDURAL, habits)
        counts["user_profiles"] = _copy(conn, _PROFILES, (_profile(who, rng, until=until) for who, rng in cast))
    return counts


_DAILY = ("daily_memories", "id", "uid", "workspace_id", "agent_id", "date", "entries", "summary", "created_at", "updated_at")
_ENTITIES = ("graph_entities", "id", "uid", "workspace_id", "name", "type", "properties", "confidence", "score", "created_at", "updated_at")
_EDGES = (
    "graph_edges",
    "id",
    "uid",
    "workspace_id",
    "source_id",
    "target_id",
    "relation",
    "properties",
    "weight",
    "created_at",
    "updated_at",
)
_PROCEDURAL = (
    *("procedural_memory", "id", "uid", "workspace_id", "kind", "name", "trigger", "body"),
    *("use_count", "success_rate", "last_used_at", "created_at", "updated_at"),
)
_PROFILES = ("user_profiles", "id", "uid", "workspace_id", "display_name", "locale", "timezone", "preferences", "created_at", "updated_at")

Row = tuple[Any, ...]


def _days(who: Person, rng: random.Random, *, days: int, until: date) -> Iterator[Row]:
    for back in range(days - 1, -1, -1):
        day = until - timedelta(days=back)
        moments = sorted(_moment(day, rng) for _ in range(rng.randint(1, 5)))
        entries = [_entry(moment, rng) for moment in moments]
        summary = None if rng.random() < 0.3 else f"{len(entries)} entries; most of it about {rng.choice(_PROJECTS)}."
        yield _id(rng), who.uid, who.workspace, who.agent, day, Jsonb(entries), summary, moments[0], moments[-1]


def _entry(moment: datetime, rng: random.Random) -> dict[str, Any]:
    category = rng.choice(_CATEGORIES)
    stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": stamp, "category": category, "content": _sentence(category, rng), "weight": round(rng.uniform(0.05, 1), 2)}


def _sentence(category: str, rng: random.Random) -> str:
    words = {"person": _PEOPLE, "place": _PLACES, "project": _PROJECTS, "thing": _THINGS, "taste": _TASTES, "reason": _REASONS}
    text = rng.choice(_TEMPLATES[category]).format(
        **{slot: rng.choice(choices) for slot, choices in words.items()},
        day=rng.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")),
        n=rng.randint(2, 9),
        hour=rng.randint(8, 19),
        minute=rng.randint(0, 59),
        big=rng.randint(1000, 99999),
    )
    return text[0].upper() + text[1:]


def _entities(who: Person, rng: random.Random, *, entities: int, until: date) -> Iterator[Row]:
    kinds = tuple(_ENTITY_TYPES)
    for number in range(entities):
        kind = kinds[number % len(kinds)]
        moment = _moment(until - timedelta(days=rng.randint(0, 60)), rng)
        properties = {"topic": rng.choice(_TOPICS), "mentions": rng.randint(1, 40), "source": who.agent}
        name, confidence, score = rng.choice(_ENTITY_TYPES[kind]), round(rng.uniform(0.4, 1), 3), rng.random()
        yield _id(rng), who.uid, who.workspace, name, kind, Jsonb(properties), confidence, score, moment, moment


def _edges(who: Person, rng: random.Random, *, nodes: Sequence[Row], entities: int) -> Iterator[Row]:
    mine = nodes[who.number * entities : (who.number + 1) * entities]
    for source, target in itertools.pairwise(mine):
        moment = max(source[-1], target[-1])
        known = Jsonb({"evidence": rng.randint(1, 12)})
        yield _id(rng), who.uid, who.workspace, source[0], target[0], rng.choice(_RELATIONS), known, round(rng.random(), 3), moment, moment


def _procedures(who: Person, rng: random.Random, *, until: date) -> Iterator[Row]:
    for kind, names in _PROCEDURES.items():
        for name in rng.sample(names, k=rng.randint(1, 2)):
            made, used = _moment(until - timedelta(days=rng.randint(20, 90)), rng), _moment(until - timedelta(days=rng.randint(0, 19)), rng)
            body = {"steps": [_sentence("task", rng) for _ in range(rng.randint(1, 4))], "version": rng.randint(1, 5), "active": True}
            trigger = f"when {rng.choice(_PEOPLE)} writes about {rng.choice(_THINGS)}"
            uses, rate = rng.randint(0, 120), round(rng.uniform(0.5, 1), 4)
            yield _id(rng), who.uid, who.workspace, kind, name, trigger, Jsonb(body), uses, rate, used, made, used


def _profile(who: Person, rng: random.Random, *, until: date) -> Row:
    made = _moment(until - timedelta(days=rng.randint(91, 400)), rng)
    locale, zone = rng.choice((("en", "Europe/London"), ("de", "Europe/Berlin"), ("pt", "America/Sao_Paulo"), ("ja", "Asia/Tokyo")))
    return _id(rng), who.uid, who.workspace, who.name, locale, zone, Jsonb({"likes": rng.sample(_TASTES, k=3)}), made, made


def _id(rng: random.Random) -> uuid.UUID:
    return uuid.UUID(int=rng.getrandbits(128), version=4)


def _moment(day: date, rng: random.Random) -> datetime:
    return datetime.combine(day, time(7), UTC) + timedelta(milliseconds=rng.randrange(14 * 3_600_000))


def _copy(conn: psycopg.Connection[Any], target: Sequence[str], rows: Iterable[Row]) -> int:
    table, *columns = target
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    count = 0
    with conn.cursor() as cur, cur.copy(sql.SQL("COPY public.{} ({}) FROM STDIN").format(sql.Identifier(table), names)) as copy:
        for row in rows:
            copy.write_row(row)
            count += 1
    return count


# -- in bulk -------------------------------------------------------------------------------------------------------------------------

BULK_USERS = 2000

# Shares of the snapshot's bytes.
_BULK_SHARES = {"graph_entities": 0.5, "daily_memories": 0.46, "procedural_memory": 0.04}
_BULK_CHUNK_BYTES = 64 << 20
# How wide the rows are about, until the first chunk has told.
_SAMPLED_WIDTHS = {"graph_entities": 20_000, "daily_memories": 2_200, "procedural_memory": 900}
_SAMPLED_ROWS = 1000


def fill_bulk(conn: psycopg.Connection[Any], *, target_bytes: int, seed: int = 7, indexes: bool = True) -> dict[str, int]:
    """Write about `target_bytes` of memory, measured as the JSON of a snapshot, and return the number of rows by table.

    Half of it is entities with embeddings, the rest mostly days; over 2,000 users, `uid_00000` and so on, each with rows all through the
    tables. Committed chunk by chunk; a connection in autocommit mode is needed. `indexes=False` leaves the vector index off for good.
    """
    if not conn.autocommit:
        raise ConfigError("fill_bulk needs a connection in autocommit mode, because it commits chunk by chunk")
    rng = random.Random(f"{seed}/bulk")  # noqa: S311  made-up data
    prose = _prose(rng)
    counts = dict.fromkeys(_BULK_SHARES, 0)
    with errors_as("write the bulk data"), _without_vector_indexes(conn, again=indexes), _vector_pool(conn, seed=seed) as names:
        for table, share in _BULK_SHARES.items():
            left = target_bytes * share
            width = 0.0
            while left > 0:
                # The first chunk is small and tells how wide a row is; from then on it is known how many are missing.
                rows = max(1, round(min(left, _BULK_CHUNK_BYTES) / (width or _SAMPLED_WIDTHS[table])))
                rows = rows if width else min(rows, _SAMPLED_ROWS)
                with conn.transaction():
                    _bulk_chunk(conn, table, first=counts[table], rows=rows, prose=prose, rng=rng, names=names)
                width = width or _width(conn, table)
                counts[table] += rows
                left -= rows * width
    return counts


def _bulk_chunk(
    conn: psycopg.Connection[Any],
    table: str,
    *,
    first: int,
    rows: int,
    prose: Prose,
    rng: random.Random,
    names: dict[str, sql.Composable],
) -> None:
    if table == "graph_entities":
        conn.execute(sql.SQL(_BULK_ENTITIES).format(users=sql.Literal(BULK_USERS), **names), {"first": first, "end": first + rows - 1})
    elif table == "daily_memories":
        _copy(conn, _DAILY, (_bulk_day(number, prose, rng) for number in range(first, first + rows)))
    else:
        _copy(conn, _PROCEDURAL, (_bulk_procedure(number, prose, rng) for number in range(first, first + rows)))


_BULK_ENTITIES = """
INSERT INTO public.graph_entities
    (id, uid, workspace_id, name, type, properties, confidence, score, embedding, created_at, updated_at)
SELECT md5('entity' || g)::uuid, 'uid_' || lpad((g %% {users})::text, 5, '0'), 'workspace-' || g %% {users} %% 20, 'entity ' || g,
       (ARRAY['person', 'place', 'project', 'topic', 'preference', 'artifact'])[g %% 6 + 1],
       jsonb_build_object('mentions', h %% 40, 'source', 'assistant', 'hash', md5(h::text)), 0.4 + (h %% 600) / 1000.0, h / 2147483648.0,
       {l2_normalize}(c.v {plus} a.v {plus} b.v {plus} d.v),
       timestamptz '2026-01-01 00:00:00+00' + g * interval '137 milliseconds',
       timestamptz '2026-02-01 00:00:00+00' + h * interval '1 millisecond'
FROM (SELECT g, ('x' || md5(g::text))::bit(31)::int AS h FROM generate_series(%(first)s::int, %(end)s::int) g) s
JOIN {pool} c ON c.kind = 'centre' AND c.n = g %% 6
JOIN {pool} a ON a.kind = 'near' AND a.n = h %% {spreads}
JOIN {pool} b ON b.kind = 'far' AND b.n = h / {spreads} %% {spreads}
JOIN {pool} d ON d.kind = 'far' AND d.n = h / {spreads} / {spreads} %% {spreads}
"""

# Put together, a vocabulary as large as a person's: with fewer words the text would compress better than memory does.
_HEADS = ("", "re", "pre", "over", "un", "inter")
_STEMS = (
    "port form plan mark view test load sign turn point play work order serve press claim count cover draft frame group hold join keep "
    "list match note pack print reach sort stand track watch write build check close drive"
).split()
_TAILS = ("", "s", "ed", "ing", "er", "able", "ment", "ful")


@dataclass(frozen=True, slots=True)
class Prose:
    """A long text to cut sentences from, and where its words begin."""

    text: str

    def cut(self, rng: random.Random, *, length: int) -> str:
        """Some `length` characters from anywhere, at the words' ends."""
        start = int(rng.random() * (len(self.text) - length - 40))
        return self.text[self.text.index(" ", start) + 1 : self.text.index(" ", start + length)]


def _prose(rng: random.Random, *, sentences: int = 60_000) -> Prose:
    """Long enough that no compressor has seen a cut before: its window is shorter. What it does find is what people repeat."""
    words = [word for group in (_PROJECTS, _THINGS, _TASTES, _REASONS, _PLACES) for phrase in group for word in phrase.split()]
    words += "and to for with about after the a of in on is was will may then again today soon not".split() * 20
    words += ["".join(parts) for parts in itertools.product(_HEADS, _STEMS, _TAILS)]
    made = []
    for category in rng.choices(_CATEGORIES, k=sentences):
        made.append(" ".join(rng.choices(words, k=rng.randint(10, 24))).capitalize() + ".")
        if rng.random() < 0.2:
            made.append(_sentence(category, rng))
    return Prose(" ".join(made))


def _bulk_uid(number: int) -> tuple[str, str]:
    user = number % BULK_USERS
    return f"uid_{user:05d}", f"workspace-{user % 20}"


def _bulk_id(table: str, number: int) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{table}/{number}")


def _bulk_day(number: int, prose: Prose, rng: random.Random) -> Row:
    uid, workspace = _bulk_uid(number)
    day = date(2020, 1, 1) + timedelta(days=number // BULK_USERS % 2200)
    moment = datetime.combine(day, time(7), UTC) + timedelta(milliseconds=number % 36_000_000)
    entries = [
        f'{{"timestamp":"{day}T{7 + k:02d}:{int(rng.random() * 60):02d}:{int(rng.random() * 60):02d}.{int(rng.random() * 1000):03d}Z",'
        f'"category":"{_CATEGORIES[int(rng.random() * 6)]}","content":"{prose.cut(rng, length=70 + int(rng.random() * 200))}",'
        f'"weight":{rng.random():.2f}}}'
        for k in range(1 + int(rng.random() * 12))
    ]
    summary = prose.cut(rng, length=80)
    return _bulk_id("day", number), uid, workspace, "assistant", day, "[" + ",".join(entries) + "]", summary, moment, moment


def _bulk_procedure(number: int, prose: Prose, rng: random.Random) -> Row:
    uid, workspace = _bulk_uid(number)
    moment = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    body = json.dumps({"steps": [prose.cut(rng, length=90) for _ in range(5)], "version": number % 9})
    kind, rate = tuple(_PROCEDURES)[number % 3], round(rng.random(), 4)
    trigger = prose.cut(rng, length=50)
    return _bulk_id("habit", number), uid, workspace, kind, f"habit {number}", trigger, body, number % 100, rate, moment, moment, moment


def _width(conn: psycopg.Connection[Any], table: str) -> float:
    """Bytes of JSON of the average row."""
    row = conn.execute(
        sql.SQL(
            "SELECT avg(octet_length(row_to_json(t)::text))::float8 AS w FROM (SELECT * FROM public.{} ORDER BY ctid DESC LIMIT 1000) t"
        ).format(sql.Identifier(table))
    ).fetchone()
    assert row is not None  # noqa: S101  an aggregate without GROUP BY always has one row
    # The comma and the line's end.
    return float(next(iter(row.values())) if isinstance(row, dict) else row[0]) + 2


# -- embeddings ----------------------------------------------------------------------------------------------------------------------


def _embed(conn: psycopg.Connection[Any], *, ids: list[uuid.UUID], seed: int) -> None:
    """Give these entities embeddings near the centre of their type: unit vectors, clustered as real ones are."""
    with _vector_pool(conn, seed=seed) as names:
        conn.execute(
            sql.SQL(
                """
                UPDATE public.graph_entities e SET embedding = {l2_normalize}(c.v {plus} a.v {plus} b.v)
                FROM (SELECT id, type, ('x' || md5(id::text))::bit(31)::int AS h FROM public.graph_entities WHERE id = ANY(%s)) k,
                     {pool} c, {pool} a, {pool} b
                WHERE e.id = k.id AND c.kind = 'centre' AND c.n = {types}
                  AND a.kind = 'near' AND a.n = k.h %% {spreads} AND b.kind = 'far' AND b.n = k.h / {spreads} %% {spreads}
                """
            ).format(types=_centre_of("k.type"), **names),
            (ids,),
        )


def _centre_of(column: str) -> sql.Composed:
    kinds = sql.SQL(", ").join(map(sql.Literal, _ENTITY_TYPES))
    return sql.SQL("coalesce(array_position(ARRAY[{}], {}), 1) - 1").format(kinds, sql.SQL(column))


@contextmanager
def _vector_pool(conn: psycopg.Connection[Any], *, seed: int, centres: int = len(_ENTITY_TYPES)) -> Iterator[dict[str, sql.Composable]]:
    """A temporary table with vectors to add up, and the names under which a query reaches it and pgvector's own functions."""
    where = conn.execute(
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    ).fetchone()
    if where is None:
        raise ConfigError("the database has no pgvector", hint="Run `coldstore init --reference-schema` first.")
    schema = sql.Identifier(next(iter(where.values())) if isinstance(where, dict) else where[0])
    pool = sql.SQL(_VECTORS)
    conn.execute(sql.SQL("CREATE TEMPORARY TABLE {} (kind text, n int, v {}.vector)").format(sql.SQL(_VECTORS.split(".")[1]), schema))
    rng = random.Random(f"{seed}/vectors")  # noqa: S311  made-up data
    with conn.cursor() as cur, cur.copy(sql.SQL("COPY {} FROM STDIN").format(pool)) as copy:
        for kind, many, length in (("centre", centres, 1.0), ("near", _SPREADS, 0.6), ("far", _SPREADS, 0.35)):
            for n in range(many):
                copy.write_row((kind, n, _vector(rng, length=length)))
    conn.execute(sql.SQL("ANALYZE {}").format(pool))
    yield {
        "pool": pool,
        "plus": sql.SQL("OPERATOR({}.+)").format(schema),
        "l2_normalize": sql.SQL("{}.l2_normalize").format(schema),
        "spreads": sql.Literal(_SPREADS),
    }
    conn.execute(sql.SQL("DROP TABLE {}").format(pool))


def _vector(rng: random.Random, *, length: float) -> str:
    # A component of a random vector of this length has this spread; eight digits are more than a float4 holds.
    spread = length / DIMENSIONS**0.5
    return "[" + ",".join([f"{rng.gauss(0, spread):.8f}" for _ in range(DIMENSIONS)]) + "]"


@contextmanager
def _without_vector_indexes(conn: psycopg.Connection[Any], *, again: bool = True) -> Iterator[None]:
    """Drop the HNSW and IVFFlat indexes of the entities, and build them again, from their own definitions, once the rows are in."""
    found = conn.execute(
        "SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition FROM pg_index i"
        " JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
        " WHERE i.indrelid = 'public.graph_entities'::regclass AND a.amname IN ('hnsw', 'ivfflat')"
    ).fetchall()
    indexes = [tuple(row.values()) if isinstance(row, dict) else row for row in found]
    for name, _ in indexes:
        conn.execute(f"DROP INDEX {name}".encode())
    yield
    for _, definition in indexes if again else ():
        conn.execute(definition.encode())
