-- $count single-row transactions as fast as one session can make them.
do $do$
begin
    for n in 1..$count loop
        insert into bench_single (id, payload) values (n, md5(n::text));
        commit;
    end loop;
end
$do$
