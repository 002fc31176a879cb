-- What is written and looked for in the measurements.
create table bench_single (
    id bigint primary key,
    payload text not null,
    at timestamptz not null default now()
);
create table bench_large (
    id bigint primary key,
    payload text not null,
    at timestamptz not null default now()
);
create table bench_load (
    session int,
    id bigint,
    payload text not null,
    primary key (session, id)
);
create table bench_marker (
    id int primary key,
    n bigint not null
);
insert into bench_marker values (1, 0)
