-- Deletes the settled conflicts that are too old, and those beyond the number that is kept.
delete from synapsedb.conflict
where at < pg_catalog.clock_timestamp() - pg_catalog.make_interval(days => $1)
    or id <= (select max(id) - $2 from synapsedb.conflict)
