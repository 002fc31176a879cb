-- $count transactions of 500 rows each, none of which writes what another does.
do $do$
begin
    for n in 1..$count loop
        insert into bench_large (id, payload) select n * 500 + i, md5(i::text) from generate_series(0, 499) i;
        commit;
    end loop;
end
$do$
