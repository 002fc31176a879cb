-- What has no replication origin here was written by the copied node ($1). Answers the boundary.
insert into synapsedb.inherited (before_xid, node) values (pg_catalog.pg_current_xact_id(), $1)
returning before_xid::text
