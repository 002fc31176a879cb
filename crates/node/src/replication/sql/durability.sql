-- Durability classes for people and programs: what a session's commits wait for, and how that stands.

-- Written by the agent when it changes; what it says is lost with a crash, and written again.
create unlogged table if not exists synapsedb.durability_state (
    only_row boolean primary key default true check (only_row),
    class text not null,
    state text not null,
    since timestamptz,
    needed integer not null,
    waiting integer not null,
    members jsonb not null
);

-- Sets the class of the session, or with is_local of the transaction: the same as SET [LOCAL] synchronous_commit.
create or replace function synapsedb.set_durability(class text, is_local boolean default false) returns text
language plpgsql as $set$
declare
    level text := case class when 'local' then 'local' when 'quorum' then 'on' when 'applied' then 'remote_apply' end;
begin
    if level is null then
        raise exception 'there is no durability class "%"', class
            using errcode = '22023', hint = 'The classes are local, quorum and applied.';
    end if;
    if level <> 'local' and pg_catalog.current_setting('synchronous_standby_names') <> '"synapsedb publisher"' then
        raise warning 'durability class "%" is not in force on this node: commits do not wait for other nodes', class
            using hint = 'GET /replication/status of its agent says why.';
    end if;
    perform pg_catalog.set_config('synchronous_commit', level, is_local);
    return class;
end
$set$;

-- The class of the session.
create or replace function synapsedb.session_durability() returns text language sql stable as $session$
    select case pg_catalog.current_setting('synchronous_commit')
        when 'off' then 'off' when 'local' then 'local' when 'remote_apply' then 'applied' else 'quorum' end
$session$;

-- One row per member: what it has acknowledged of this node's commits, with the class and whether it is kept. Where it
-- is not, a WARNING says so.
create or replace function synapsedb.durability() returns table (
    member integer, connected boolean, acknowledged boolean, durable_lsn pg_lsn, visible_lsn pg_lsn,
    class text, session_class text, state text, since timestamptz, members_needed integer, sessions_waiting integer
)
language plpgsql volatile security definer set search_path = pg_catalog as $durability$
declare
    s synapsedb.durability_state;
begin
    select * into s from synapsedb.durability_state;
    if not exists (select from pg_stat_replication where application_name = 'synapsedb publisher') then
        s.state := 'agent away';
        raise warning 'the agent of this node is away: commits of the classes quorum and applied wait for it';
    elsif s.state = 'degraded' then
        raise warning 'durability is DEGRADED to local since %: fewer than % members acknowledge commits',
            s.since, s.needed;
    elsif s.state = 'lost' then
        raise warning 'the quorum is lost since %: fewer than % members acknowledge commits, which wait',
            s.since, s.needed;
    end if;
    return query
        select m.node, m.connected, m.acknowledged, m.durable_lsn, m.visible_lsn,
            s.class, synapsedb.session_durability(), s.state, s.since, s.needed, s.waiting
        from jsonb_to_recordset(s.members) as m (
            node integer, connected boolean, acknowledged boolean, durable_lsn pg_lsn, visible_lsn pg_lsn)
        order by m.node;
end
$durability$;
