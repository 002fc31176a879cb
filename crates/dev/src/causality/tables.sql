-- The tables of the causality checker, and the one statement of its writers.
create table hot_progress (
    writer int primary key,
    seq bigint not null,
    saw jsonb not null
);
create table hot_log (
    writer int not null,
    seq bigint not null,
    step int not null,
    kind text not null,
    key int not null,
    other int not null,
    code int not null,
    tag int not null,
    kept text,
    primary key (writer, seq, step)
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
-- With a value that an update which does not change it leaves out of the stream.
create table hot_large (
    id int primary key,
    v text not null,
    large text not null
);
alter table hot_large alter large set storage external;
create table hot_balance (
    id int primary key,
    balance bigint not null
);
create table hot_merge (
    id int primary key,
    a text not null,
    b text not null
);
-- One transaction of a writer: it reads how far all writers are, writes, and says in the same transaction what it has
-- seen and done. False when there was nothing to write.
create function hot_steps(who int, number bigint, kinds text[], keys int[], others int[], codes int[], tags int[])
returns boolean language plpgsql set search_path = public as
$steps$
declare
    seen jsonb;
    any_changed boolean := false;
    changed bigint;
    old_key int;
    mark text;
    saw_large text;
begin
    select coalesce(jsonb_object_agg(p.writer, p.seq), '{}') into seen from hot_progress p where p.seq > 0;
    for i in 1 .. cardinality(kinds) loop
        old_key := keys[i];
        mark := who || '/' || number || '/' || i;
        saw_large := null;
        case kinds[i]
            when 'insert row' then
                insert into hot_row values (old_key, who, number);
            when 'update row' then
                update hot_row set writer = who, seq = number where id = old_key;
            when 'delete row' then
                delete from hot_row where id = old_key;
            when 'move row' then
                update hot_row set id = others[i], writer = who, seq = number where id = old_key;
            when 'insert unique' then
                insert into hot_unique values (old_key, codes[i], tags[i], who, number);
            when 'update unique' then
                update hot_unique set code = codes[i], tag = tags[i], writer = who, seq = number where id = old_key;
            when 'delete unique' then
                delete from hot_unique where id = old_key;
            when 'move unique' then
                update hot_unique set id = others[i], code = codes[i], tag = tags[i], writer = who, seq = number
                where id = old_key;
            when 'text large' then
                update hot_large set v = mark where id = old_key returning split_part(large, ' ', 1) into saw_large;
            when 'value large' then
                update hot_large set v = mark, large = repeat(mark || ' ', 500) where id = old_key
                returning split_part(large, ' ', 1) into saw_large;
            when 'add balance' then
                update hot_balance set balance = balance + codes[i] where id = old_key;
            when 'a merge' then
                update hot_merge set a = mark where id = old_key;
            when 'b merge' then
                update hot_merge set b = mark where id = old_key;
        end case;
        get diagnostics changed = row_count;
        if changed > 0 then
            any_changed := true;
            insert into hot_log
            values (who, number, i, kinds[i], old_key, others[i], codes[i], tags[i], coalesce(saw_large, ''));
        end if;
    end loop;
    if any_changed then
        update hot_progress set seq = number, saw = seen where writer = who;
    end if;
    return any_changed;
end
$steps$;
