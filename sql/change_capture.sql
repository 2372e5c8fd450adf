-- Which rows changed, noted in the transaction that changed them, so that an incremental snapshot need not read the rest. For those who
-- ask for it: it puts triggers on tables that are not coldstore's own.
--
--   section: install    the tables; again and again without harm
--   section: function   what the triggers of one tier run; `{…}` are filled in by coldstore/postgres/capture.py
--   section: body       its text. Nothing in it is looked up by name outside pg_catalog and coldstore
--   section: triggers   on each table, partition and heir of the tier
--   section: remove     leaves nothing


-- section: install

-- `key`: the primary key's values as text, in its order; null says that the table was emptied. A row whose key or owner changed has two.
CREATE TABLE IF NOT EXISTS coldstore.changes (
    tier      text NOT NULL,
    key       text[],
    uid       text,
    workspace text,
    xid       xid8 NOT NULL
);

COMMENT ON TABLE coldstore.changes IS 'Rows that changed since the oldest snapshot that an incremental one may build on';

CREATE INDEX IF NOT EXISTS changes_xid ON coldstore.changes (xid);

-- A publication of all tables would otherwise forbid to delete from it.
ALTER TABLE coldstore.changes REPLICA IDENTITY FULL;

CREATE TABLE IF NOT EXISTS coldstore.heads (
    scope       text        NOT NULL PRIMARY KEY,
    snapshot_id text        NOT NULL,
    checksum    text        NOT NULL,
    snapshot    pg_snapshot NOT NULL,
    taken_at    timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE coldstore.heads IS 'The newest snapshot of each scope that this very database went through';

-- The floor: changes that its snapshot has seen may have been swept away. Its id says whose tables these are.
INSERT INTO coldstore.heads (scope, snapshot_id, checksum, snapshot)
SELECT 'floor', pg_catalog.concat(d.oid, '.', 'coldstore.changes'::pg_catalog.regclass::pg_catalog.oid), '', pg_catalog.pg_current_snapshot()
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
ON CONFLICT (scope) DO NOTHING;


-- section: function

CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' {settings} AS {body};

REVOKE ALL ON FUNCTION {function}() FROM PUBLIC;


-- section: body

-- condition {condition}
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO coldstore.changes (tier, key, uid, workspace, xid)
        SELECT {tier}, {key}, {uid}, {workspace}, pg_catalog.pg_current_xact_id() FROM new_rows AS r;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO coldstore.changes (tier, key, uid, workspace, xid)
        SELECT {tier}, x.key, x.uid, x.workspace, pg_catalog.pg_current_xact_id() FROM (
            SELECT {key}, {uid}, {workspace} FROM old_rows AS r
            UNION
            SELECT {key}, {uid}, {workspace} FROM new_rows AS r
        ) AS x (key, uid, workspace);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO coldstore.changes (tier, key, uid, workspace, xid)
        SELECT {tier}, {key}, {uid}, {workspace}, pg_catalog.pg_current_xact_id() FROM old_rows AS r;
    ELSE
        INSERT INTO coldstore.changes (tier, xid) VALUES ({tier}, pg_catalog.pg_current_xact_id());
    END IF;
    RETURN NULL;
END


-- section: triggers

CREATE OR REPLACE TRIGGER {insert} AFTER INSERT ON {table}
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {function}();
CREATE OR REPLACE TRIGGER {update} AFTER UPDATE ON {table}
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {function}();
CREATE OR REPLACE TRIGGER {delete} AFTER DELETE ON {table}
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION {function}();
CREATE OR REPLACE TRIGGER {truncate} AFTER TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {function}();

-- Also for a session that replays what happened elsewhere (`session_replication_role = replica`).
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {insert};
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {update};
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {delete};
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {truncate};


-- section: remove

DO $$
DECLARE
    recorder regprocedure;
BEGIN
    FOR recorder IN
        SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = 'coldstore' AND p.proname LIKE 'capture\_%' AND p.prorettype = 'pg_catalog.trigger'::regtype
         ORDER BY p.proname
    LOOP
        EXECUTE pg_catalog.format('DROP FUNCTION %s CASCADE', recorder);
    END LOOP;
END
$$;

DROP TABLE IF EXISTS coldstore.changes, coldstore.heads;
