select case when r.rolvaliduntil < pg_catalog.now() then null else r.rolpassword end,
       r.rolcanlogin,
       r.rolconnlimit,
       exists (
           select
           from pg_catalog.pg_database as d
           where d.datname = $2 and d.datallowconn
               and pg_catalog.has_database_privilege(r.oid, d.oid, 'connect')
       ),
       r.oid || ':' || coalesce(
           (
               select pg_catalog.string_agg(s::text, ' ' order by s.setdatabase, s.setrole)
               from pg_catalog.pg_db_role_setting as s
               where s.setrole in (0, r.oid)
                   and s.setdatabase in (
                       select 0
                       union all
                       select d.oid from pg_catalog.pg_database as d where d.datname = $2
                   )
           ),
           ''
       ),
       r.rolsuper,
       pg_catalog.pg_has_role(r.oid, 'pg_monitor', 'member'),
       coalesce((select d.datconnlimit from pg_catalog.pg_database as d where d.datname = $2), -1)
from pg_catalog.pg_authid as r
where r.rolname = $1
