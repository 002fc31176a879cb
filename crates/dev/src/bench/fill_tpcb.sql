-- The tables of pgbench at scale $scale.
insert into pgbench_branches (bid, bbalance) select n, 0 from generate_series(1, $scale) n;
insert into pgbench_tellers (tid, bid, tbalance) select n, (n - 1) / 10 + 1, 0 from generate_series(1, 10 * $scale) n;
insert into pgbench_accounts (aid, bid, abalance, filler)
    select n, (n - 1) / 100000 + 1, 0, '' from generate_series(1, 100000 * $scale) n;
