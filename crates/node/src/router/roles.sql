select r.rolpassword,
       r.rolcanlogin and not coalesce(r.rolvaliduntil < pg_catalog.now(), false),
       r.rolconnlimit,
       exists (
           select
           from pg_catalog.pg_database as d
           where d.datname = $2 and d.datallowconn
               and pg_catalog.has_database_privilege(r.oid, d.oid, 'connect')
       )
from pg_catalog.pg_authid as r
where r.rolname = $1
