-- $count rows of node $node, each inserted by one transaction and changed by another.
do $do$
begin
    for n in 1..$count loop
        insert into bench_load values ($node, n, 'new');
        commit;
        update bench_load set payload = 'changed' where session = $node and id = n;
        commit;
    end loop;
end
$do$
