-- The first: coldstore's own schema, the list of migrations and the list of runs.

-- Not `CREATE SCHEMA IF NOT EXISTS`: that asks for the right to create schemas even where an administrator has made this one for us.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'coldstore') THEN
        CREATE SCHEMA coldstore;
    END IF;
END
$$;

COMMENT ON SCHEMA coldstore IS 'coldstore''s own tables: what ran, and which migrations were applied';

CREATE TABLE coldstore.migrations (
    version    integer     NOT NULL PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE coldstore.migrations IS 'One row per applied file of sql/migrations';

CREATE TABLE coldstore.runs (
    id           uuid        NOT NULL DEFAULT gen_random_uuid() PRIMARY KEY,
    kind         text        NOT NULL CONSTRAINT runs_kind_known
                             CHECK (kind IN ('snapshot', 'restore', 'verify', 'drill', 'prune', 'compact')),
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
COMMENT ON COLUMN coldstore.runs.heartbeat_at IS 'Moved on while the run lives: one that stands still belongs to a dead process';

-- Of several replicas that wake up for the same slot one inserts the row, and the others see that it is taken.
CREATE UNIQUE INDEX runs_one_per_slot ON coldstore.runs (schedule, slot) WHERE slot IS NOT NULL;

-- "What ran last", and the reaper's search for runs that stopped breathing.
CREATE INDEX runs_started_at ON coldstore.runs (started_at DESC);
CREATE INDEX runs_alive ON coldstore.runs (heartbeat_at) WHERE state = 'running';
