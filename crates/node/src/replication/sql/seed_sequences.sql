-- Gives every sequence the residue class of this node, after what the copied node had given, and after what an earlier
-- life of this node gave, as far as the column that owns the sequence shows it.
do $reseat$
declare
    me synapsedb.node;
    s record;
    at record;
    owner record;
    step bigint;
    start bigint;
    next numeric;
    used bigint;
begin
    select * into me from synapsedb.node;
    for s in
        select q.anchor, q.increment, q.sequence, p.seqmin, p.seqmax
        from synapsedb.sequence q join pg_catalog.pg_sequence p on p.seqrelid = q.sequence
    loop
        step := s.increment * me.sequence_stride;
        start := s.anchor + s.increment * (me.node - 1);
        execute pg_catalog.format('select last_value, is_called from %s', s.sequence::pg_catalog.regclass) into at;
        next := synapsedb.next_in_class(at.last_value, at.is_called, start, step);
        for owner in
            select d.refobjid::pg_catalog.regclass as relation, a.attname
            from pg_catalog.pg_depend d
            join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
            where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = s.sequence
                and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.deptype in ('a', 'i')
                and me.incarnation > 1
        loop
            execute pg_catalog.format('select %s(%I) from %s where (%I - $1) %% $2 = 0',
                case when step > 0 then 'max' else 'min' end, owner.attname, owner.relation, owner.attname)
                into used using start, step;
            if used is not null and (used + step - next) * pg_catalog.sign(step) > 0 then
                next := used + step;
            end if;
        end loop;
        if next not between s.seqmin and s.seqmax then
            next := start;
        end if;
        execute pg_catalog.format('alter sequence %s increment by %s start with %s restart with %s',
            s.sequence::pg_catalog.regclass, step, start, next);
    end loop;
end
$reseat$;
delete from synapsedb.ddl
