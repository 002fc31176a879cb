-- What synapsedb.durability() shows.
insert into synapsedb.durability_state (class, state, since, needed, waiting, members)
values ($1, $2, now() - $3::float8 * interval '1 millisecond', $4, $5, $6::text::jsonb)
on conflict (only_row) do update set class = excluded.class, state = excluded.state, since = excluded.since,
    needed = excluded.needed, waiting = excluded.waiting, members = excluded.members
