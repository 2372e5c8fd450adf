-- The schema, in two sections that are installed apart from each other:
--
--   section: coldstore   coldstore's own tables, in a schema of their own. The truth for them: the numbered files in `migrations/`
--                        must reach exactly this, and a test compares the two.
--   section: reference   tables for an agent's memory, for those who have none yet. coldstore never needs these very tables: it reads
--                        and restores whatever columns the real ones have.
--
-- Both can be run again at any time: what is there already stays as it is.


-- section: coldstore

-- Not `CREATE SCHEMA IF NOT EXISTS`: that asks for the right to create schemas even where an administrator has made this one for us.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'coldstore') THEN
        CREATE SCHEMA coldstore;
    END IF;
END
$$;

COMMENT ON SCHEMA coldstore IS 'coldstore''s own tables: what ran, and which migrations were applied';

CREATE TABLE IF NOT EXISTS coldstore.migrations (
    version    integer     NOT NULL PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE coldstore.migrations IS 'One row per applied file of sql/migrations';

CREATE TABLE IF NOT EXISTS coldstore.runs (
    id           uuid        NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    kind         text        NOT NULL CONSTRAINT runs_kind_known
                             CHECK (kind IN ('snapshot', 'restore', 'verify', 'drill', 'prune', 'compact', 'delete')),
    trigger      text        NOT NULL CONSTRAINT runs_trigger_known CHECK (trigger IN ('cli', 'http', 'schedule', 'api')),
    scope        text        NOT NULL DEFAULT 'all' CONSTRAINT runs_scope_known CHECK (scope IN ('all', 'uid', 'workspace')),
    uid          text,
    workspace    text,
    state        text        NOT NULL DEFAULT 'running' CONSTRAINT runs_state_known
                             CHECK (state IN ('running', 'succeeded', 'failed', 'skipped')),
    schedule     text,
    slot         timestamptz,
    started_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    snapshot_id  text,
    rows         bigint,
    bytes        bigint,
    error        text,
    details      jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT runs_scope_names_its_subject CHECK ((uid IS NOT NULL) = (scope = 'uid') AND (workspace IS NOT NULL) = (scope = 'workspace')),
    CONSTRAINT runs_slot_of_a_schedule CHECK (slot IS NULL OR schedule IS NOT NULL),
    CONSTRAINT runs_end_once CHECK ((finished_at IS NULL) = (state = 'running'))
);

COMMENT ON TABLE coldstore.runs IS 'One row per execution';
COMMENT ON COLUMN coldstore.runs.schedule IS 'Which schedule asked for it; null for a run that somebody started';
COMMENT ON COLUMN coldstore.runs.slot IS 'The planned moment that this run answers; null for a run that somebody started';
COMMENT ON COLUMN coldstore.runs.error IS 'Why it failed, or was skipped; never a secret';
COMMENT ON COLUMN coldstore.runs.heartbeat_at IS 'Moved on while the run lives: one that stands still belongs to a dead process';

-- Of several replicas that wake up for the same slot one inserts the row, and the others see that it is taken.
CREATE UNIQUE INDEX IF NOT EXISTS runs_one_per_slot ON coldstore.runs (schedule, slot) WHERE slot IS NOT NULL;

-- "What ran last", and the reaper's search for runs that stopped breathing.
CREATE INDEX IF NOT EXISTS runs_started_at ON coldstore.runs (started_at DESC);
CREATE INDEX IF NOT EXISTS runs_alive ON coldstore.runs (heartbeat_at) WHERE state = 'running';


-- section: reference

-- Embeddings. Needs pgvector on the server; creating it needs the right to (it is a trusted extension only from some vendors).
CREATE EXTENSION IF NOT EXISTS vector;

-- No table here has an `updated_at` trigger, on purpose: it would put the time of the restore into every row that a restore brings
-- back, and the restored memory would no longer be the snapshot's. Whoever changes a row sets `updated_at`.

-- Tier 2, daily memory: one row per user, agent and day.
CREATE TABLE IF NOT EXISTS public.daily_memories (
    id           uuid        NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    uid          text        NOT NULL,
    workspace_id text,
    agent_id     text,
    date         date        NOT NULL,
    entries      jsonb       NOT NULL DEFAULT '[]',
    summary      text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE public.daily_memories IS 'Tier 2: what happened on a day';
COMMENT ON COLUMN public.daily_memories.entries IS 'Array of {timestamp, category, content, weight}';

CREATE INDEX IF NOT EXISTS daily_memories_uid_date ON public.daily_memories (uid, date);
CREATE INDEX IF NOT EXISTS daily_memories_workspace ON public.daily_memories (workspace_id, date);

-- Tier 3, user profiles: who the user is. Not part of a snapshot unless configured.
CREATE TABLE IF NOT EXISTS public.user_profiles (
    id           uuid        NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    uid          text        NOT NULL CONSTRAINT user_profiles_uid_once UNIQUE,
    workspace_id text,
    display_name text,
    locale       text        NOT NULL DEFAULT 'en',
    timezone     text        NOT NULL DEFAULT 'UTC',
    preferences  jsonb       NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE public.user_profiles IS 'Tier 3: who the user is';

CREATE INDEX IF NOT EXISTS user_profiles_workspace ON public.user_profiles (workspace_id);

-- Tier 4, the knowledge graph: things, and how they hang together.
CREATE TABLE IF NOT EXISTS public.graph_entities (
    id           uuid             NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    uid          text             NOT NULL,
    workspace_id text,
    name         text             NOT NULL,
    type         text             NOT NULL,
    properties   jsonb            NOT NULL DEFAULT '{}',
    confidence   double precision NOT NULL DEFAULT 1,
    score        double precision,
    embedding    vector(1536),
    created_at   timestamptz      NOT NULL DEFAULT now(),
    updated_at   timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT graph_entities_confidence_is_a_share CHECK (confidence >= 0 AND confidence <= 1)
);

COMMENT ON TABLE public.graph_entities IS 'Tier 4: the nodes of the knowledge graph';
COMMENT ON COLUMN public.graph_entities.confidence IS 'How sure the agent is that this is so, 0 to 1';
COMMENT ON COLUMN public.graph_entities.score IS 'Any ranking of the agent''s own; not limited';

CREATE INDEX IF NOT EXISTS graph_entities_uid ON public.graph_entities (uid, type, name);
CREATE INDEX IF NOT EXISTS graph_entities_workspace ON public.graph_entities (workspace_id);
CREATE INDEX IF NOT EXISTS graph_entities_embedding ON public.graph_entities USING hnsw (embedding vector_cosine_ops);

CREATE TABLE IF NOT EXISTS public.graph_edges (
    id           uuid             NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    uid          text             NOT NULL,
    workspace_id text,
    source_id    uuid             NOT NULL REFERENCES public.graph_entities (id) ON DELETE CASCADE,
    target_id    uuid             NOT NULL REFERENCES public.graph_entities (id) ON DELETE CASCADE,
    relation     text             NOT NULL,
    properties   jsonb            NOT NULL DEFAULT '{}',
    weight       double precision NOT NULL DEFAULT 1,
    created_at   timestamptz      NOT NULL DEFAULT now(),
    updated_at   timestamptz      NOT NULL DEFAULT now()
);

COMMENT ON TABLE public.graph_edges IS 'Tier 4: the edges of the knowledge graph';

CREATE INDEX IF NOT EXISTS graph_edges_uid ON public.graph_edges (uid, relation);
CREATE INDEX IF NOT EXISTS graph_edges_workspace ON public.graph_edges (workspace_id);
CREATE INDEX IF NOT EXISTS graph_edges_source ON public.graph_edges (source_id);
CREATE INDEX IF NOT EXISTS graph_edges_target ON public.graph_edges (target_id);

-- Tier 5, procedural memory: how things are done.
CREATE TABLE IF NOT EXISTS public.procedural_memory (
    id           uuid             NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    uid          text             NOT NULL,
    workspace_id text,
    kind         text             NOT NULL CONSTRAINT procedural_memory_kind_known CHECK (kind IN ('workflow', 'rule', 'template')),
    name         text             NOT NULL,
    trigger      text,
    body         jsonb            NOT NULL DEFAULT '{}',
    use_count    integer          NOT NULL DEFAULT 0,
    success_rate double precision,
    last_used_at timestamptz,
    created_at   timestamptz      NOT NULL DEFAULT now(),
    updated_at   timestamptz      NOT NULL DEFAULT now()
);

COMMENT ON TABLE public.procedural_memory IS 'Tier 5: workflows, rules and templates';
COMMENT ON COLUMN public.procedural_memory.trigger IS 'What makes the agent think of it';

CREATE INDEX IF NOT EXISTS procedural_memory_uid ON public.procedural_memory (uid, kind, name);
CREATE INDEX IF NOT EXISTS procedural_memory_workspace ON public.procedural_memory (workspace_id);

-- The agent's schedules, which coldstore's scheduler reads. Not a tier. Its columns are the documented ones: nothing is added.
CREATE TABLE IF NOT EXISTS public.scheduled_agents (
    id              uuid        DEFAULT gen_random_uuid() PRIMARY KEY,
    workspace_id    text,
    agent_id        text,
    cron_expression text,
    input_message   text,
    surface         text        DEFAULT 'chat',
    surface_id      text        DEFAULT 'scheduled',
    enabled         boolean     DEFAULT true,
    last_run_at     timestamptz,
    last_run_error  text,
    created_by      text        NOT NULL,
    created_at      timestamptz DEFAULT now(),
    updated_at      timestamptz DEFAULT now()
);

COMMENT ON TABLE public.scheduled_agents IS 'Which agent is woken up when, and with what message';
