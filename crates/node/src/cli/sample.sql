-- What the guide's session works with, made once on node 1; it reaches the other nodes as any DDL does.
set role synapsedb;
set search_path = public;
create table if not exists users (
    id serial primary key,
    username text not null,
    email text,
    created_at timestamptz not null default now()
);
create table if not exists orders (
    id serial primary key,
    user_id integer references users (id),
    product_name text not null,
    amount numeric(12, 2) not null,
    created_at timestamptz not null default now()
);
