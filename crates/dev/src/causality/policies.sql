-- The tables with a policy of their own, with the rows 1 to $keys.
select synapsedb.set_delta('hot_balance', 'balance');
select synapsedb.set_policy('hot_merge', 'merge_columns');
insert into hot_large select id, '-', repeat('- ', 500) from generate_series(1, $keys) id;
insert into hot_balance select id, 0 from generate_series(1, $keys) id;
insert into hot_merge select id, '-', '-' from generate_series(1, $keys) id
