-- What is deleted for ever leaves a trace in the list of runs as well.

ALTER TABLE coldstore.runs
    DROP CONSTRAINT runs_kind_known,
    ADD CONSTRAINT runs_kind_known CHECK (kind IN ('snapshot', 'restore', 'verify', 'drill', 'prune', 'compact', 'delete'));

COMMENT ON COLUMN coldstore.runs.error IS 'Why it failed, or was skipped; never a secret';
