-- Deletes a row if it is still as it was seen; answers what it was.
delete from only {table} t
where ({keys}) = ({key_given}) and {hash}::text = $2 and t.xmin::text = $3
returning pg_catalog.to_jsonb(t)::text, pg_catalog.pg_xact_commit_timestamp(t.xmin)::text
