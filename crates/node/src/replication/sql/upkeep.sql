-- Keeps sequences apart and tables identifiable. Fires for the users' DDL and for DDL that arrives from other nodes.

-- Gives a sequence this node's residue class: anchor + increment * (node - 1), then steps of increment * stride.
create or replace function synapsedb.align_sequence(sequence oid) returns void
language plpgsql security definer set search_path = pg_catalog as $align$
declare
    me synapsedb.node;
    known synapsedb.sequence;
    now_is pg_sequence;
    at record;
    step bigint;
    anchor bigint;
    start numeric;
    next numeric;
begin
    select * into me from synapsedb.node;
    select * into now_is from pg_sequence where seqrelid = align_sequence.sequence;
    if not found then
        return;
    end if;
    select * into known from synapsedb.sequence s where s.sequence = align_sequence.sequence;
    step := case when now_is.seqincrement = known.increment * me.sequence_stride
        then known.increment else now_is.seqincrement end;
    anchor := case when now_is.seqstart = known.anchor + step * (me.node - 1)
        then known.anchor else now_is.seqstart end;
    start := anchor::numeric + step * (me.node - 1);
    if start not between now_is.seqmin and now_is.seqmax or abs(step::numeric * me.sequence_stride) > 9223372036854775807 then
        raise warning 'sequence % is too short to be shared by the nodes: its values may collide',
            align_sequence.sequence::regclass;
        return;
    end if;
    execute format('select last_value, is_called from %s', align_sequence.sequence::regclass) into at;
    next := synapsedb.next_in_class(at.last_value, at.is_called, start::bigint, step * me.sequence_stride);
    if next not between now_is.seqmin and now_is.seqmax then
        next := start;
    end if;
    if now_is.seqincrement <> step * me.sequence_stride or now_is.seqstart <> start then
        execute format('alter sequence %s increment by %s start with %s restart with %s',
            align_sequence.sequence::regclass, step * me.sequence_stride, start, next);
    elsif not at.is_called and at.last_value <> next or at.is_called and at.last_value + now_is.seqincrement <> next then
        perform setval(align_sequence.sequence::regclass, next::bigint, false);
    end if;
    insert into synapsedb.sequence values (align_sequence.sequence, anchor, step)
        on conflict on constraint sequence_pkey do update
        set anchor = excluded.anchor, increment = excluded.increment
        where (synapsedb.sequence.anchor, synapsedb.sequence.increment) <> (excluded.anchor, excluded.increment);
end
$align$;

-- The first value of the class {start + n * stride} that a sequence at this position may give next.
create or replace function synapsedb.next_in_class(last_value bigint, is_called boolean, start bigint, stride bigint)
returns numeric language sql immutable set search_path = pg_catalog as $next$
    select case
        when (first_free - start) * sign(stride) <= 0 then start
        else start + ceil((first_free - start) / stride) * stride
    end
    from (select last_value::numeric + case when is_called then sign(stride) else 0 end as first_free) f
$next$;

-- Sequences that a setval() put into another node's class are brought back; answers how many.
create or replace function synapsedb.realign_sequences() returns bigint
language plpgsql security definer set search_path = pg_catalog as $realign$
declare
    stray record;
    moved bigint := 0;
begin
    delete from synapsedb.sequence s where not exists (select from pg_sequence where seqrelid = s.sequence);
    for stray in
        select s.sequence, pg_sequence_last_value(s.sequence) as last_value
        from synapsedb.sequence s join pg_sequence p on p.seqrelid = s.sequence
        where (pg_sequence_last_value(s.sequence) - p.seqstart) % p.seqincrement <> 0
    loop
        perform synapsedb.align_sequence(stray.sequence);
        moved := moved + 1;
    end loop;
    return moved;
end
$realign$;

-- A table without a primary key replicates updates and deletes by its whole rows (REPLICA IDENTITY FULL).
create or replace function synapsedb.identify_table(relation oid) returns void
language plpgsql security definer set search_path = pg_catalog as $identify$
declare
    has_key boolean := exists (select from pg_index where indrelid = relation and indisprimary);
    ours boolean := exists (select from synapsedb.keyless k where k.relation = identify_table.relation);
    described record;
begin
    select relreplident, relkind, relpersistence into described from pg_class where oid = relation;
    if described.relkind not in ('r', 'p') or described.relpersistence <> 'p' then
        if described.relpersistence = 'u' then
            raise notice 'table % is unlogged: its rows stay on this node', relation::regclass;
        end if;
        return;
    end if;
    if not has_key and described.relreplident = 'd' then
        execute format('alter table only %s replica identity full', relation::regclass);
        insert into synapsedb.keyless values (relation) on conflict do nothing;
        raise notice 'table % has no primary key: updates and deletes are replicated by whole rows, slowly',
            relation::regclass using hint = 'Add a primary key.';
    elsif has_key and ours and described.relreplident = 'f' then
        execute format('alter table only %s replica identity default', relation::regclass);
        delete from synapsedb.keyless k where k.relation = identify_table.relation;
    end if;
end
$identify$;

create or replace function synapsedb.upkeep_ddl() returns event_trigger
language plpgsql security definer set search_path = pg_catalog as $upkeep$
declare
    stack text;
    command record;
begin
    get diagnostics stack = pg_context;
    if strpos(substr(stack, strpos(stack || E'\n', E'\n') + 1), 'synapsedb.upkeep_ddl()') > 0 then
        return;
    end if;
    for command in
        select distinct on (objid) * from pg_event_trigger_ddl_commands()
        where schema_name not in ('pg_temp', 'synapsedb') and object_type in ('sequence', 'table')
    loop
        if command.object_type = 'sequence' then
            perform synapsedb.align_sequence(command.objid);
        else
            perform synapsedb.identify_table(command.objid);
        end if;
    end loop;
end
$upkeep$;

-- The trigger runs as their owner; nobody else needs them.
revoke all on function synapsedb.align_sequence(oid), synapsedb.realign_sequences(), synapsedb.identify_table(oid)
    from public;
