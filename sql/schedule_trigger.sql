-- A schedule that is changed wakes the schedulers at once; without this they see it at their next look at the table. For those who ask for
-- it: it puts a trigger on a table that is not coldstore's own.
--
--   section: install   again and again without harm
--   section: remove    leaves nothing


-- section: install

CREATE OR REPLACE FUNCTION coldstore.schedules_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.pg_notify('coldstore_schedules', '');
    RETURN NULL;
END
$$;

-- Not for every column: a scheduler notes there what it ran, and would wake itself.
CREATE OR REPLACE TRIGGER coldstore_schedules_changed
    AFTER INSERT OR DELETE OR UPDATE OF workspace_id, cron_expression, input_message, surface_id, enabled ON public.scheduled_agents
    FOR EACH STATEMENT EXECUTE FUNCTION coldstore.schedules_changed();


-- section: remove

DO $$
BEGIN
    IF to_regclass('public.scheduled_agents') IS NOT NULL THEN
        DROP TRIGGER IF EXISTS coldstore_schedules_changed ON public.scheduled_agents;
    END IF;
END
$$;

DROP FUNCTION IF EXISTS coldstore.schedules_changed();
