-- Gives every sequence the residue class of this node, after what the copied node had given, and after what an earlier
-- life of this node gave: as that life's server told, else as the columns that draw from the sequence show it, else
-- after so many values that no life gives them.
do $reseat$
declare
    skipped constant numeric := 4294967296;
    me synapsedb.node;
    told boolean;
    s record;
    at record;
    drawn record;
    step bigint;
    start bigint;
    next numeric;
    used numeric;
    seen boolean;
begin
    select * into me from synapsedb.node;
    select known or me.incarnation = 1 into told from pg_temp.seed_known;
    for s in
        select q.anchor, q.increment, q.sequence, p.seqmin, p.seqmax
        from synapsedb.sequence q join pg_catalog.pg_sequence p on p.seqrelid = q.sequence
    loop
        step := s.increment * me.sequence_stride;
        start := s.anchor + s.increment * (me.node - 1);
        execute pg_catalog.format('select last_value, is_called from %s', s.sequence::pg_catalog.regclass) into at;
        next := synapsedb.next_in_class(at.last_value, at.is_called, start, step);
        seen := false;
        select synapsedb.next_in_class(g.last_value, true, start, step) into used
            from pg_temp.seed_given g where g.sequence = s.sequence;
        if (used - next) * pg_catalog.sign(step) > 0 then
            next := used;
        end if;
        -- The columns that own the sequence, and those whose default names it.
        for drawn in
            select d.refobjid::pg_catalog.regclass as relation, a.attname, d.deptype in ('a', 'i') as owns
            from pg_catalog.pg_depend d
            join pg_catalog.pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
            where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.objid = s.sequence
                and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.deptype in ('a', 'i')
                and not told
            union
            select f.adrelid::pg_catalog.regclass, a.attname, false
            from pg_catalog.pg_depend d
            join pg_catalog.pg_attrdef f on f.oid = d.objid
            join pg_catalog.pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum
            where d.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass and d.refobjid = s.sequence
                and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
                and a.atttypid in ('int2'::pg_catalog.regtype, 'int4'::pg_catalog.regtype, 'int8'::pg_catalog.regtype)
                and not told
        loop
            seen := seen or drawn.owns;
            execute pg_catalog.format('select %s(%I) from %s where (%I - $1) %% $2 = 0',
                case when step > 0 then 'max' else 'min' end, drawn.attname, drawn.relation, drawn.attname)
                into used using start, step;
            if (used + step - next) * pg_catalog.sign(step) > 0 then
                next := used + step;
            end if;
        end loop;
        if not told and not seen then
            if next + skipped * step between s.seqmin and s.seqmax then
                next := next + skipped * step;
            else
                insert into pg_temp.seed_short values (s.sequence);
            end if;
        end if;
        if next not between s.seqmin and s.seqmax then
            next := start;
        end if;
        execute pg_catalog.format('alter sequence %s increment by %s start with %s restart with %s',
            s.sequence::pg_catalog.regclass, step, start, next);
    end loop;
end
$reseat$;
delete from synapsedb.ddl
