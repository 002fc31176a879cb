-- The rows of the writers and one account each, whose balance is the sum of the writer's rows.
create table load_history (
    node int not null,
    writer int not null,
    n bigint not null,
    delta int not null,
    at timestamptz not null default now(),
    primary key (node, writer, n)
);
create table load_account (
    node int not null,
    writer int not null,
    balance bigint not null,
    primary key (node, writer)
)
