-- The tables of the causality checker, and the one statement of its writers.
create table hot_progress (
    writer int primary key,
    seq bigint not null,
    saw jsonb not null
);
create table hot_log (
    writer int not null,
    seq bigint not null,
    kind text not null,
    key int not null,
    other int not null,
    code int not null,
    tag int not null,
    primary key (writer, seq)
);
create table hot_row (
    id int primary key,
    writer int not null,
    seq bigint not null
);
create table hot_unique (
    id int primary key,
    code int not null unique,
    tag int not null unique,
    writer int not null,
    seq bigint not null
);
-- One transaction of a writer: it reads how far all writers are, writes, and says in the same transaction what it has
-- seen and done. False when there was nothing to write.
create function hot_step(who int, number bigint, what text, old_key int, new_key int, a int, b int)
returns boolean language plpgsql set search_path = public as
$step$
declare
    seen jsonb;
    changed bigint;
begin
    select coalesce(jsonb_object_agg(p.writer, p.seq), '{}') into seen from hot_progress p where p.seq > 0;
    case what
        when 'insert row' then
            insert into hot_row values (old_key, who, number);
        when 'update row' then
            update hot_row set writer = who, seq = number where id = old_key;
        when 'delete row' then
            delete from hot_row where id = old_key;
        when 'move row' then
            update hot_row set id = new_key, writer = who, seq = number where id = old_key;
        when 'insert unique' then
            insert into hot_unique values (old_key, a, b, who, number);
        when 'update unique' then
            update hot_unique set code = a, tag = b, writer = who, seq = number where id = old_key;
        when 'delete unique' then
            delete from hot_unique where id = old_key;
        when 'move unique' then
            update hot_unique set id = new_key, code = a, tag = b, writer = who, seq = number where id = old_key;
    end case;
    get diagnostics changed = row_count;
    if changed = 0 then
        return false;
    end if;
    insert into hot_log values (who, number, what, old_key, new_key, a, b);
    update hot_progress set seq = number, saw = seen where writer = who;
    return true;
end
$step$;
