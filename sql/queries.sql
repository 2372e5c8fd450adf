-- Named queries, read by coldstore/sql.py. Each stands under a line `-- name: NAME`; parameters are psycopg's %(name)s.
-- All of them run with an empty search_path, so every name that Postgres prints is qualified.

-- name: moment
-- One row: what identifies this database and this moment. The system identifier is not readable on every managed service.
SELECT
    CASE WHEN has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')
         THEN (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) ELSE '' END AS system_identifier,
    current_database()::text AS name,
    current_setting('server_version') AS server_version,
    pg_catalog.pg_current_snapshot()::text AS snapshot,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS milliseconds,
    current_setting('server_encoding') AS encoding,
    (SELECT d.oid::bigint FROM pg_catalog.pg_database d WHERE d.datname = current_database()) AS oid,
    CASE WHEN has_function_privilege('pg_catalog.pg_control_checkpoint()', 'EXECUTE')
         THEN (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()) ELSE 0 END AS timeline,
    -- Not on a standby, which does not know its own transactions; nor for a role that may not look.
    NOT pg_is_in_recovery() AND CASE WHEN has_schema_privilege(to_regnamespace('coldstore'), 'USAGE')
                                     THEN to_regclass('coldstore.changes') IS NOT NULL ELSE false END AS captured

-- name: relations
-- One row per table: what it is, who may read it, and how a partitioned one is cut.
SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS relkind,
       row_security_active(c.oid) AS filtered, has_table_privilege(c.oid, 'SELECT') AS readable,
       CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END AS partition_key,
       c.reltype::bigint AS row_type
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY (%(oids)s::oid[])

-- name: columns
-- One row per column, in table order.
SELECT a.attrelid::bigint AS relation, a.attnum::int AS number, a.attname::text AS name,
       format_type(a.atttypid, a.atttypmod) AS type, a.atttypid::bigint AS type_oid, a.attnotnull AS not_null,
       a.attgenerated::text AS generated, a.attidentity::text AS identity,
       pg_get_expr(d.adbin, d.adrelid) AS default_expression, d.oid::bigint AS default_oid,
       CASE WHEN a.attcollation <> t.typcollation THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END AS collation,
       has_column_privilege(a.attrelid, a.attnum, 'SELECT') AS readable
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
WHERE a.attrelid = ANY (%(oids)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum

-- name: types
-- The types given and all that they are made of: elements, bases, attributes, subtypes.
WITH RECURSIVE used (oid) AS (
    SELECT unnest(%(types)s::oid[])
    UNION
    SELECT x.oid FROM used u JOIN pg_catalog.pg_type t ON t.oid = u.oid
    CROSS JOIN LATERAL (
        SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
                  WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid
        UNION ALL SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid
    ) x (oid)
)
SELECT t.oid::bigint AS oid, n.nspname::text AS schema, t.typname::text AS name, t.typtype::text AS kind,
       (t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc AND t.typelem <> 0) AS is_array,
       t.typelem::bigint AS element, t.typdelim::text AS delimiter, t.typbasetype::bigint AS base,
       t.typnotnull AS not_null, t.typdefault AS default_expression,
       CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END AS base_name,
       CASE WHEN t.typtype = 'd' AND t.typcollation <> bt.typcollation
            THEN (SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname) FROM pg_catalog.pg_collation co
                  JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = t.typcollation) END AS collation,
       t.typsend::oid::regproc::text AS send,
       n.nspname = 'pg_catalog' AS built_in,
       EXISTS (SELECT FROM pg_catalog.pg_cast k WHERE k.castsource = t.oid AND k.casttarget = 'pg_catalog.json'::regtype
               AND k.castfunc <> 0) AS casts_to_json,
       EXISTS (SELECT FROM pg_catalog.pg_depend p WHERE p.classid = 'pg_catalog.pg_type'::regclass AND p.objid = t.oid
               AND p.deptype = 'e') AS from_extension,
       (SELECT array_agg(e.enumlabel::text ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid) AS labels,
       (SELECT jsonb_agg(jsonb_build_array(k.conname, pg_get_constraintdef(k.oid)) ORDER BY k.conname)
          FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c') AS checks,
       (SELECT jsonb_agg(jsonb_build_array(a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid::bigint) ORDER BY a.attnum)
          FROM pg_catalog.pg_attribute a
         WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS attributes,
       (SELECT c.relkind::text FROM pg_catalog.pg_class c WHERE c.oid = t.typrelid) AS relation_kind,
       (SELECT jsonb_build_array(format_type(r.rngsubtype, NULL), r.rngsubtype::bigint, mn.nspname, m.typname,
               CASE WHEN r.rngcollation <> b.typcollation THEN r.rngcollation::regcollation::text END)
          FROM pg_catalog.pg_range r JOIN pg_catalog.pg_type b ON b.oid = r.rngsubtype
          JOIN pg_catalog.pg_type m ON m.oid = r.rngmultitypid JOIN pg_catalog.pg_namespace mn ON mn.oid = m.typnamespace
         WHERE r.rngtypid = t.oid) AS subtype
FROM used u JOIN pg_catalog.pg_type t ON t.oid = u.oid
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type bt ON bt.oid = t.typbasetype

-- name: constraints
-- Keys, checks, exclusions and foreign keys of the tables themselves, none that a parent handed down.
SELECT k.conrelid::bigint AS relation, k.conname::text AS name, k.contype::text AS kind, pg_get_constraintdef(k.oid) AS definition,
       (SELECT coalesce(array_agg(a.attname::text ORDER BY x.ord), '{}') FROM unnest(k.conkey) WITH ORDINALITY x (num, ord)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.num) AS columns,
       fn.nspname::text AS references_schema, fc.relname::text AS references_name
FROM pg_catalog.pg_constraint k
LEFT JOIN pg_catalog.pg_class fc ON fc.oid = k.confrelid AND k.contype = 'f'
LEFT JOIN pg_catalog.pg_namespace fn ON fn.oid = fc.relnamespace
WHERE k.conrelid = ANY (%(oids)s::oid[]) AND k.contype IN ('p', 'u', 'f', 'c', 'x') AND k.conparentid = 0
ORDER BY k.conrelid, k.contype, k.conname

-- name: indexes
-- Indexes that stand for themselves. `prefix` is the part of the definition before the access method.
SELECT i.indrelid::bigint AS relation, x.relname::text AS name, i.indisunique AS is_unique, pg_get_indexdef(i.indexrelid) AS definition,
       format(' ON %%s%%I.%%I USING ', CASE WHEN x.relkind = 'I' THEN 'ONLY ' ELSE '' END, n.nspname, c.relname) AS prefix,
       (SELECT coalesce(array_agg(a.attname::text), '{}') FROM pg_catalog.pg_depend d
          JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid AND d.refobjid = i.indrelid
           AND d.refobjsubid > 0) AS columns
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = ANY (%(oids)s::oid[]) AND i.indisvalid AND NOT x.relispartition
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x'))
ORDER BY i.indrelid, x.relname

-- name: sequences
-- Every sequence that a column draws from: identity, serial, or a default that names one.
SELECT s.seqrelid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name, format_type(s.seqtypid, NULL) AS type,
       s.seqstart AS start, s.seqincrement AS increment, s.seqmin AS minimum, s.seqmax AS maximum, s.seqcache AS cache,
       s.seqcycle AS cycle,
       CASE WHEN has_sequence_privilege(c.oid, 'USAGE, SELECT') THEN pg_sequence_last_value(c.oid) END AS last_value,
       u.relation::bigint AS relation, u.number::int AS number, u.link
FROM (
    SELECT p.objid AS seq, p.refobjid AS relation, p.refobjsubid AS number,
           CASE WHEN p.deptype = 'i' THEN 'identity' ELSE 'owned' END AS link
      FROM pg_catalog.pg_depend p
     WHERE p.classid = 'pg_catalog.pg_class'::regclass AND p.refclassid = 'pg_catalog.pg_class'::regclass
       AND p.refobjid = ANY (%(oids)s::oid[]) AND p.refobjsubid > 0 AND p.deptype IN ('i', 'a')
    UNION ALL
    SELECT p.refobjid, d.adrelid, d.adnum, 'drawn'
      FROM pg_catalog.pg_attrdef d
      JOIN pg_catalog.pg_depend p ON p.classid = 'pg_catalog.pg_attrdef'::regclass AND p.objid = d.oid
       AND p.refclassid = 'pg_catalog.pg_class'::regclass
     WHERE d.adrelid = ANY (%(oids)s::oid[])
) u
JOIN pg_catalog.pg_sequence s ON s.seqrelid = u.seq
JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace

-- name: extensions
-- Extensions that the types, index methods, operator classes and default functions of the tables come from.
SELECT DISTINCT e.extname::text AS name, n.nspname::text AS schema, e.extversion AS version
FROM (
    SELECT 'pg_catalog.pg_type'::regclass::oid, unnest(%(types)s::oid[])
    UNION
    SELECT 'pg_catalog.pg_opclass'::regclass::oid, unnest(i.indclass::oid[])
      FROM pg_catalog.pg_index i WHERE i.indrelid = ANY (%(oids)s::oid[])
    UNION
    SELECT 'pg_catalog.pg_am'::regclass::oid, x.relam
      FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = ANY (%(oids)s::oid[])
    UNION
    SELECT p.refclassid, p.refobjid
      FROM pg_catalog.pg_attrdef d
      JOIN pg_catalog.pg_depend p ON p.classid = 'pg_catalog.pg_attrdef'::regclass AND p.objid = d.oid
     WHERE d.adrelid = ANY (%(oids)s::oid[]) AND p.refclassid = 'pg_catalog.pg_proc'::regclass
) o (classid, objid)
CROSS JOIN LATERAL (
    SELECT p.refobjid FROM pg_catalog.pg_depend p
     WHERE p.classid = o.classid AND p.objid = o.objid AND p.objsubid = 0 AND p.deptype = 'e' OFFSET 0
) p
JOIN pg_catalog.pg_extension e ON e.oid = p.refobjid
JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
ORDER BY 1

-- name: leaves
-- The relations in which the rows of a table really lie: itself, its partitions and heirs. Bytes include what was moved out of line.
WITH RECURSIVE tree (root, oid, parent, depth) AS (
    SELECT c.oid, c.oid, NULL::oid, 0 FROM pg_catalog.pg_class c WHERE c.oid = ANY (%(oids)s::oid[])
    UNION ALL
    SELECT t.root, i.inhrelid, i.inhparent, t.depth + 1 FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
)
SELECT t.root::bigint AS root, c.oid::bigint AS oid, t.depth, n.nspname::text AS schema, c.relname::text AS name,
       c.relkind::text AS relkind, c.relispartition AS is_partition, am.amname::text AS method,
       pn.nspname::text AS parent_schema, pc.relname::text AS parent_name,
       CASE WHEN c.relispartition THEN pg_get_expr(c.relpartbound, c.oid) END AS bound,
       CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END AS partition_key,
       CASE WHEN c.relkind IN ('r', 'm') THEN pg_relation_size(c.oid) / current_setting('block_size')::bigint END AS pages,
       CASE WHEN c.relkind IN ('r', 'm') THEN pg_table_size(c.oid) END AS bytes
FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
LEFT JOIN pg_catalog.pg_class pc ON pc.oid = t.parent
LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
ORDER BY t.root, t.depth, n.nspname, c.relname

-- name: destructive_references
-- Foreign keys that would delete or change rows elsewhere when a row of the table is deleted.
SELECT k.conname::text AS name, n.nspname::text AS schema, c.relname::text AS table_name, k.confrelid::bigint AS referenced,
       c.oid::bigint AS referencing,
       (SELECT array_agg(a.attname::text ORDER BY x.ord) FROM unnest(k.conkey) WITH ORDINALITY x (num, ord)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = x.num) AS columns,
       (SELECT array_agg(a.attname::text ORDER BY x.ord) FROM unnest(k.confkey) WITH ORDINALITY x (num, ord)
          JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = x.num) AS referenced_columns
FROM pg_catalog.pg_constraint k
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE k.confrelid = ANY (%(oids)s::oid[]) AND k.contype = 'f' AND k.confdeltype IN ('c', 'n', 'd') AND k.conparentid = 0

-- name: state
-- One text that changes whenever somebody alters one of the tables or types: row versions of the catalog's own rows about them.
SELECT md5(coalesce(string_agg(x.version, ' ' ORDER BY x.version), '')) AS state
FROM (
    SELECT 'c' || c.oid || c.xmin || c.ctid::text || n.xmin FROM pg_catalog.pg_class c
      JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY (%(oids)s::oid[])
    UNION ALL
    SELECT 'a' || a.attrelid || '.' || a.attnum || a.xmin || a.ctid::text FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = ANY (%(oids)s::oid[])
    UNION ALL
    SELECT 'd' || d.oid || d.xmin || d.ctid::text FROM pg_catalog.pg_attrdef d WHERE d.adrelid = ANY (%(oids)s::oid[])
    UNION ALL
    SELECT 'k' || k.oid || k.xmin || k.ctid::text FROM pg_catalog.pg_constraint k WHERE k.conrelid = ANY (%(oids)s::oid[])
    UNION ALL
    SELECT 'i' || i.indexrelid || i.xmin || i.ctid::text FROM pg_catalog.pg_index i WHERE i.indrelid = ANY (%(oids)s::oid[])
    UNION ALL
    SELECT 't' || t.oid || t.xmin || t.ctid::text FROM pg_catalog.pg_type t WHERE t.oid = ANY (%(types)s::oid[])
    UNION ALL
    SELECT 'e' || e.oid || e.xmin || e.ctid::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = ANY (%(types)s::oid[])
    UNION ALL
    SELECT 'p' || p.inhrelid || p.xmin || p.ctid::text FROM pg_catalog.pg_inherits p WHERE p.inhparent = ANY (%(oids)s::oid[])
) x (version)

-- name: guards
-- What keeps rows out of one table: unique and exclusion indexes, checks, foreign keys. For an index `keys` are the expressions that two
-- rows must not share, by `operators` where it is an exclusion's; `expression` is its predicate, or the check. Columns that came after
-- PostgreSQL 14 are looked up by name.
SELECT x.relname::text AS name, coalesce(k.contype::text, 'u') AS kind,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])) AS columns,
       ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, false) FROM generate_series(1, i.indnkeyatts) n ORDER BY n) AS keys,
       ARRAY(SELECT format('OPERATOR(%%I.%%s)', n.nspname, o.oprname) FROM unnest(k.conexclop) WITH ORDINALITY u (oid, place)
               JOIN pg_catalog.pg_operator o ON o.oid = u.oid JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
              ORDER BY u.place) AS operators,
       pg_get_expr(i.indpred, i.indrelid) AS expression,
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false) AS nulls_too,
       NULL::text AS references_table, NULL::text[] AS references_columns
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u', 'x')
WHERE i.indrelid = %(oid)s AND (i.indisunique OR k.contype = 'x')
UNION ALL
SELECT k.conname::text, k.contype::text,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u (num, place)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num ORDER BY u.place),
       '{}', '{}', pg_get_expr(k.conbin, k.conrelid), false, nullif(k.confrelid, 0)::regclass::text,
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u (num, place)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num ORDER BY u.place)
FROM pg_catalog.pg_constraint k
WHERE k.conrelid = %(oid)s AND k.contype IN ('c', 'f') AND k.conparentid = 0
  AND coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true)
ORDER BY 2, 1

-- name: culprit
-- The constraint, or index without one, that an error names, as it stands on the topmost table: a partition reports its own. Checks have
-- one name on all of them.
WITH RECURSIVE table_named (oid) AS (
    SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s
), up (oid, parent, relation, name) AS (
    SELECT k.oid, k.conparentid, k.conrelid, k.conname FROM pg_catalog.pg_constraint k JOIN table_named t ON t.oid = k.conrelid
    WHERE k.conname = %(name)s AND k.contype <> 'n'
    UNION ALL
    SELECT k.oid, k.conparentid, k.conrelid, k.conname FROM pg_catalog.pg_constraint k JOIN up ON up.parent = k.oid
)
SELECT coalesce(pg_partition_root(up.relation::regclass), up.relation)::bigint AS oid, up.name::text AS name, NULL::text AS index
FROM up WHERE up.parent = 0
UNION ALL
SELECT i.indrelid::bigint, x.relname::text, i.indexrelid::regclass::text
FROM table_named t
JOIN pg_catalog.pg_index found ON found.indrelid = t.oid
JOIN pg_catalog.pg_class named ON named.oid = found.indexrelid AND named.relname = %(name)s
JOIN pg_catalog.pg_index i ON i.indexrelid = coalesce(pg_partition_root(named.oid::regclass), named.oid)
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = named.oid AND k.contype IN ('p', 'u', 'x'))
LIMIT 1

-- name: run_log
-- Whether there is a list of runs, and whether this server takes no writes. Asked of the catalog: who may not enter the schema gets an
-- answer all the same.
SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'coldstore' AND c.relname = 'runs') AS present,
       pg_catalog.pg_is_in_recovery() AS standby

-- name: run_begin
-- Nothing is inserted when somebody has taken the slot.
INSERT INTO coldstore.runs (id, kind, trigger, scope, uid, workspace, schedule, slot, details)
VALUES (%(id)s, %(kind)s, %(trigger)s, %(scope)s, %(uid)s, %(workspace)s, %(schedule)s, %(slot)s, %(details)s)
ON CONFLICT DO NOTHING

-- name: run_beat
-- Not for a run that somebody else has taken over.
UPDATE coldstore.runs r SET heartbeat_at = clock_timestamp()
FROM unnest(%(ids)s::uuid[], %(attempts)s::int[]) AS a (id, attempt)
WHERE r.id = a.id AND r.state = 'running' AND coalesce((r.details ->> 'attempts')::int, 1) = a.attempt

-- name: run_end
UPDATE coldstore.runs
SET state = %(state)s, finished_at = n.now, heartbeat_at = n.now, snapshot_id = %(snapshot_id)s, rows = %(rows)s,
    bytes = %(bytes)s, error = %(error)s, details = details || %(details)s
FROM (SELECT clock_timestamp() AS now) n
WHERE id = %(id)s AND state = 'running' AND coalesce((details ->> 'attempts')::int, 1) = %(attempt)s

-- name: run_late
-- The run was taken for dead, or was taken over. What was said of it stays.
UPDATE coldstore.runs
SET details = details || CASE WHEN details @> '{"reaped": true}' THEN %(details)s ELSE '{}'::jsonb END
    || jsonb_build_object('late', jsonb_strip_nulls(jsonb_build_object('state', %(state)s::text,
    'at', clock_timestamp(), 'snapshotId', %(snapshot_id)s::text, 'rows', %(rows)s::bigint, 'bytes', %(bytes)s::bigint,
    'error', %(error)s::text)))
WHERE id = %(id)s AND (details @> '{"reaped": true}' OR coalesce((details ->> 'attempts')::int, 1) <> %(attempt)s)

-- name: run_reap
-- Nobody knows when it died: the last sign of life is when it was last known to run.
UPDATE coldstore.runs
SET state = 'failed', finished_at = heartbeat_at, details = details || '{"reaped": true}',
    error = 'no sign of life since ' || to_char(heartbeat_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
WHERE state = 'running' AND heartbeat_at < clock_timestamp() - make_interval(secs => %(timeout)s)

-- name: run_last_slot
SELECT max(slot) AS slot FROM coldstore.runs WHERE schedule = %(schedule)s

-- name: run
SELECT id::text, kind, trigger, scope, uid, workspace, state, schedule, slot, started_at, finished_at, heartbeat_at,
       extract(epoch FROM finished_at - started_at)::float8 AS seconds, snapshot_id, rows, bytes, error, details
FROM coldstore.runs WHERE id = %(id)s

-- name: run_answered
-- Who asked for it stands in `details`; there is no index on that, but on when it began.
SELECT id::text, kind, trigger, scope, uid, workspace, state, schedule, slot, started_at, finished_at, heartbeat_at,
       extract(epoch FROM finished_at - started_at)::float8 AS seconds, snapshot_id, rows, bytes, error, details
FROM coldstore.runs
WHERE started_at > clock_timestamp() - make_interval(secs => %(hours)s * 3600) AND details @> %(asked)s
ORDER BY started_at DESC
LIMIT 1

-- name: run_figures
-- Of each kind and scope, among the runs begun since: the last good one, how many are going, and when the oldest of those and the newest of
-- all began; there is a row also when there is no run. The arrays compare by their first member, the moment it ended. Not `>=`: of what lies
-- between two moments the planner expects little, and takes the index.
SELECT extract(epoch FROM n.now)::float8 AS now, r.*
FROM (SELECT clock_timestamp() AS now) n
LEFT JOIN (SELECT kind, scope, count(*) FILTER (WHERE state = 'running') AS running, max(started_at) AS newest,
                  min(started_at) FILTER (WHERE state = 'running') AS oldest,
                  max(ARRAY[extract(epoch FROM finished_at)::float8, bytes::float8]) FILTER (WHERE state = 'succeeded') AS good
           FROM coldstore.runs
           WHERE started_at BETWEEN %(since)s::timestamptz AND 'infinity'
           GROUP BY kind, scope) r ON true

-- name: runs
-- Newest first; with `before`, what stands behind that run.
SELECT id::text, kind, trigger, scope, uid, workspace, state, schedule, slot, started_at, finished_at, heartbeat_at,
       extract(epoch FROM finished_at - started_at)::float8 AS seconds, snapshot_id, rows, bytes, error, details
FROM coldstore.runs
WHERE (%(kind)s::text IS NULL OR kind = %(kind)s) AND (%(state)s::text IS NULL OR state = %(state)s)
  AND (%(uid)s::text IS NULL OR uid = %(uid)s) AND (%(before)s::uuid IS NULL OR (started_at, id) < (%(at)s::timestamptz, %(before)s::uuid))
ORDER BY started_at DESC, id DESC
LIMIT %(limit)s

-- name: slot_lock
-- Whoever looks at a schedule's slots in order to take one waits for whoever does already. The claim is on the disk before it counts: a
-- server that crashes must not forget it and have the slot run twice.
SELECT pg_advisory_xact_lock(hashtextextended('coldstore schedule ' || %(schedule)s, 0)), set_config('synchronous_commit', 'on', true),
       set_config('idle_in_transaction_session_timeout', '10s', true)

-- name: slot_claim
-- A new row; or, while a run of the same schedule is still going, one that says that this slot is skipped. A slot that was begun and not
-- brought to an end is taken over in the same row. No row comes back when there is nothing to do.
WITH going AS (
    SELECT slot FROM coldstore.runs WHERE schedule = %(schedule)s AND state = 'running' AND slot <> %(slot)s LIMIT 1
), again AS (
    UPDATE coldstore.runs
    SET kind = %(kind)s, scope = %(scope)s, uid = %(uid)s, workspace = %(workspace)s, state = 'running', started_at = clock_timestamp(),
        heartbeat_at = clock_timestamp(), finished_at = NULL, snapshot_id = NULL, rows = NULL, bytes = NULL, error = NULL,
        details = (details - 'reaped' - 'stopped') || %(details)s
               || jsonb_build_object('attempts', coalesce((details ->> 'attempts')::int, 1) + 1)
    WHERE schedule = %(schedule)s AND slot = %(slot)s AND state = 'failed' AND NOT EXISTS (SELECT FROM going)
      AND (details @> '{"reaped": true}' OR details @> '{"stopped": true}') AND coalesce((details ->> 'attempts')::int, 1) < %(attempts)s
    RETURNING id, state, error, (details ->> 'attempts')::int AS attempt
), new AS (
    INSERT INTO coldstore.runs (id, kind, trigger, scope, uid, workspace, schedule, slot, details, started_at, heartbeat_at, state,
                                finished_at, error)
    SELECT %(id)s::uuid, %(kind)s, 'schedule', %(scope)s, %(uid)s, %(workspace)s, %(schedule)s, %(slot)s, %(details)s, at, at,
           CASE WHEN g.slot IS NULL THEN 'running' ELSE 'skipped' END, CASE WHEN g.slot IS NOT NULL THEN at END,
           'the run of ' || to_char(g.slot AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || ' was still going'
    FROM (SELECT clock_timestamp() AS at) now LEFT JOIN going g ON true
    ON CONFLICT (schedule, slot) WHERE slot IS NOT NULL DO NOTHING
    RETURNING id, state, error, 1 AS attempt
)
SELECT id::text, state, error, attempt FROM again
UNION ALL
SELECT id::text, state, error, attempt FROM new
UNION ALL -- sent a second time, because only the answer to the first was lost
SELECT id::text, state, error, 1 FROM coldstore.runs WHERE id = %(id)s::uuid

-- name: slot_skip
-- A slot that nobody runs any more.
INSERT INTO coldstore.runs (id, kind, trigger, scope, uid, workspace, schedule, slot, details, started_at, heartbeat_at, state,
                            finished_at, error)
SELECT gen_random_uuid(), %(kind)s, 'schedule', %(scope)s, %(uid)s, %(workspace)s, %(schedule)s, %(missed)s, '{}', at, at, 'skipped', at,
       %(reason)s
FROM (SELECT clock_timestamp() AS at) now
WHERE %(missed)s::timestamptz IS NOT NULL
ON CONFLICT (schedule, slot) WHERE slot IS NOT NULL DO NOTHING

-- name: schedule_rows
-- The schedules that are this scheduler's.
SELECT id::text AS id, workspace_id, cron_expression, input_message, last_run_at, last_run_error, created_at, updated_at
FROM public.scheduled_agents WHERE surface_id = %(surface_id)s AND enabled

-- name: schedule_slots
-- Each of the schedules in `asked`, with its newest settled slot (`slot`), the newest that was begun and how that ended (`begun`, …), and
-- whether a run of it is going; there is a row also when there is no schedule. A slot that is still to come, because the clock was wrong
-- once, settles nothing. `dead`: there is something to reap. After a restart of the server every run is given the time to be heard of.
SELECT c.now, c.dead, a.*, last.slot, begun.slot AS begun, begun.state, begun.error, begun.finished_at AS ended,
       coalesce((begun.details ->> 'attempts')::int, 1) AS attempts,
       coalesce(begun.details @> '{"reaped": true}' OR begun.details @> '{"stopped": true}', false) AS unfinished,
       EXISTS (SELECT FROM coldstore.runs r WHERE r.schedule = a.id AND r.state = 'running') AS going
FROM (SELECT n.now, EXISTS (SELECT FROM coldstore.runs r WHERE r.state = 'running'
                               AND greatest(r.heartbeat_at, pg_postmaster_start_time()) < n.now - make_interval(secs => %(timeout)s)) AS dead
        FROM (SELECT clock_timestamp() AS now) n) c
LEFT JOIN asked a ON true
LEFT JOIN LATERAL (SELECT max(r.slot) AS slot FROM coldstore.runs r WHERE r.schedule = a.id AND r.slot <= c.now) last ON true
LEFT JOIN LATERAL (SELECT * FROM coldstore.runs r WHERE r.schedule = a.id AND r.slot <= c.now AND r.state <> 'skipped'
                    ORDER BY r.slot DESC LIMIT 1) begun ON true
ORDER BY a.id

-- name: schedule_ran
-- `at`: when it ran; null where it did not. Only what coldstore keeps there: `updated_at` is whoever edits the row's.
UPDATE public.scheduled_agents SET last_run_at = coalesce(%(at)s::timestamptz, last_run_at), last_run_error = %(error)s WHERE id::text = %(id)s

-- name: capture
-- One row per table, partition and heir of each tier: whether its changes are recorded by the function meant for it, and a text that
-- differs as soon as somebody has touched the triggers, the function, the columns (a rewrite fires no trigger) or the tree.
WITH RECURSIVE tree (root, recorder, oid) AS (
    SELECT w.oid, to_regprocedure(w.recorder)::oid, w.oid FROM unnest(%(oids)s::oid[], %(recorders)s::text[]) w (oid, recorder)
    UNION
    SELECT t.root, t.recorder, i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
)
SELECT t.root::bigint AS root, t.oid::regclass::text AS name, c.relkind::text AS relkind, c.relpersistence::text AS persistence,
       (SELECT i.inhparent::regclass::text FROM pg_catalog.pg_inherits i
         WHERE i.inhrelid = t.oid AND NOT EXISTS (SELECT FROM tree o WHERE o.root = t.root AND o.oid = i.inhparent) LIMIT 1) AS outside,
       EXISTS (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = t.oid) AS subscribed,
       g.events, g.always, p.prosrc AS source,
       concat_ws(' ', t.oid, p.oid, p.xmin, g.version,
           (SELECT string_agg(a.attnum || '.' || a.xmin::text, ',' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = t.oid AND a.attnum > 0),
           (SELECT string_agg(i.inhparent || '.' || i.xmin::text, ',' ORDER BY i.inhparent) FROM pg_catalog.pg_inherits i
             WHERE i.inhrelid = t.oid)) AS version
FROM tree t
JOIN pg_catalog.pg_class c ON c.oid = t.oid
LEFT JOIN pg_catalog.pg_proc p ON p.oid = t.recorder AND p.prosecdef
CROSS JOIN LATERAL (
    -- Statement triggers, after the event, of one event each: INSERT, DELETE, UPDATE, TRUNCATE.
    SELECT count(DISTINCT g.tgtype) AS events, bool_and(g.tgenabled = 'A') AS always,
           string_agg(g.oid || '.' || g.xmin::text, ',' ORDER BY g.oid) AS version
      FROM pg_catalog.pg_trigger g
     WHERE g.tgrelid = t.oid AND g.tgfoid = t.recorder AND g.tgtype IN (4, 8, 16, 32) AND g.tgqual IS NULL AND g.tgattr = ''
) g
ORDER BY t.root, t.oid

-- name: key_operators
-- By which operator each column of a primary key equals another value, in the key's order.
SELECT format('OPERATOR(%%I.%%s)', n.nspname, o.oprname) AS operator
FROM pg_catalog.pg_index i
CROSS JOIN LATERAL unnest(i.indclass::oid[]) WITH ORDINALITY u (opclass, place)
JOIN pg_catalog.pg_opclass k ON k.oid = u.opclass
JOIN pg_catalog.pg_amop a ON a.amopfamily = k.opcfamily AND a.amoplefttype = k.opcintype AND a.amoprighttype = k.opcintype
 AND a.amopstrategy = 3
JOIN pg_catalog.pg_operator o ON o.oid = a.amopopr
JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
WHERE i.indrelid = %(oid)s AND i.indisprimary
ORDER BY u.place

-- name: touched
-- Which tiers have changes of the scope since a snapshot, and whether their table was emptied.
SELECT c.tier, bool_or(c.key IS NULL) AS emptied
FROM coldstore.changes c
WHERE c.xid >= pg_snapshot_xmin(%(parent)s::pg_snapshot)
  AND NOT pg_visible_in_snapshot(c.xid, %(parent)s::pg_snapshot)
  AND (c.key IS NULL OR (%(uid)s::text IS NULL OR c.uid = %(uid)s) AND (%(workspace)s::text IS NULL OR c.workspace = %(workspace)s))
GROUP BY c.tier

-- name: capture_floor
-- Held by whoever sets a head: under it lies what may have been swept away. Where a copy of a database brought the tables along, they are
-- not its own.
SELECT f.snapshot_id = concat(d.oid, '.', 'coldstore.changes'::regclass::oid)
           AND pg_snapshot_xmax(f.snapshot) <= pg_snapshot_xmax(pg_current_snapshot()) AS own,
       pg_snapshot_xmin(f.snapshot) <= pg_snapshot_xmin(%(snapshot)s::pg_snapshot) AS above
FROM coldstore.heads f JOIN pg_catalog.pg_database d ON d.datname = current_database()
WHERE f.scope = 'floor' FOR SHARE OF f

-- name: adopt_capture
-- Start anew from a snapshot. Transactions of elsewhere may have ids that are still to come here.
WITH forgotten AS (DELETE FROM coldstore.heads WHERE scope <> 'floor'),
     foreign_changes AS (DELETE FROM coldstore.changes WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
UPDATE coldstore.heads f
   SET snapshot_id = concat(d.oid, '.', 'coldstore.changes'::regclass::oid), snapshot = %(snapshot)s::pg_snapshot
  FROM pg_catalog.pg_database d WHERE d.datname = current_database() AND f.scope = 'floor'

-- name: set_head
-- A newer one stays, by the milliseconds its name ends in, as in the store: of two taken at once, either may have seen more
-- transactions. Not one of elsewhere, which may have seen some that are still to come here.
INSERT INTO coldstore.heads AS h (scope, snapshot_id, checksum, snapshot, taken_at)
VALUES (%(scope)s, %(id)s, %(checksum)s, %(snapshot)s::pg_snapshot, clock_timestamp())
ON CONFLICT (scope) DO UPDATE SET snapshot_id = excluded.snapshot_id, checksum = excluded.checksum, snapshot = excluded.snapshot,
                                  taken_at = excluded.taken_at
 WHERE substring(excluded.snapshot_id FROM '[0-9]+$')::bigint >= substring(h.snapshot_id FROM '[0-9]+$')::bigint
    OR pg_snapshot_xmax(h.snapshot) > pg_snapshot_xmax(pg_current_snapshot())

-- name: move_floor
-- Up to the oldest snapshot that somebody may still build on; never down. The moment noted a while ago counts as one, for the sake of
-- snapshots that were begun then and have no head yet.
UPDATE coldstore.heads f SET snapshot = m.snapshot
FROM (SELECT h.snapshot FROM coldstore.heads h WHERE h.scope <> 'floor' ORDER BY pg_snapshot_xmin(h.snapshot) LIMIT 1) m
WHERE f.scope = 'floor' AND pg_snapshot_xmin(m.snapshot) > pg_snapshot_xmin(f.snapshot)
  AND EXISTS (SELECT FROM coldstore.heads n WHERE n.scope = 'next floor' AND n.taken_at <= clock_timestamp() - %(grace)s::interval)

-- name: note_floor
INSERT INTO coldstore.heads AS h (scope, snapshot_id, checksum, snapshot, taken_at)
VALUES ('next floor', '', '', pg_current_snapshot(), clock_timestamp())
ON CONFLICT (scope) DO UPDATE SET snapshot = excluded.snapshot, taken_at = excluded.taken_at
 WHERE h.taken_at <= clock_timestamp() - %(grace)s::interval

-- name: sweep
-- One batch of what lies under the floor.
DELETE FROM coldstore.changes WHERE ctid = ANY (ARRAY(
    SELECT c.ctid FROM coldstore.changes c
     WHERE c.xid < (SELECT pg_snapshot_xmin(f.snapshot) FROM coldstore.heads f WHERE f.scope = 'floor')
     ORDER BY c.xid LIMIT %(limit)s))
