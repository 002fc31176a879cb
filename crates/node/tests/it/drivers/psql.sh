#!/bin/sh
# What users of psql do. The place comes from libpq's variables; each check prints its name when it holds.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Runs statements from standard input and prints their rows.
ask() { psql -X -q -At -v ON_ERROR_STOP=1 "$@"; }

# Ends with what was found when it is not what was expected.
same() {
    [ "$1" = "$2" ] || {
        printf 'found %s\ninstead of %s\n' "$1" "$2" >&2
        exit 1
    }
}

same "$(ask <<'SQL'
prepare item (int) as select v from items where id = $1;
execute item (1);
begin; execute item (1); commit;
execute item (1);
deallocate item;
SQL
)" 'one
one
one'
echo prepared

seq 1 10000 >"$folder/in"
ask >"$folder/count" <<SQL
create temp table copied (id int);
\\copy copied from '$folder/in'
\\copy (select id from copied order by id) to '$folder/out'
select count(*) from copied;
SQL
same "$(cat "$folder/count")" 10000
cmp "$folder/in" "$folder/out"
echo copy

# psql cancels on SIGINT.
status=0
timeout -s INT 1 psql -X -q -c 'select pg_sleep(30)' 2>"$folder/cancelled" || status=$?
grep -q 'canceling statement due to user request' "$folder/cancelled"
[ "$status" -ne 0 ]
echo cancel

same "$(ask -c 'select 1; select 2; select 3')" '1
2
3'
echo pipeline

same "$(psql -X -q -At 2>&1 <<'SQL'
begin;
insert into items values (100, 'lost');
select 1/0;
select 1;
rollback;
select count(*) from items where id = 100;
SQL
)" 'ERROR:  division by zero
ERROR:  current transaction is aborted, commands ignored until end of transaction block
0'
echo rollback

if PGPASSWORD=wrong psql -X -c 'select 1' 2>"$folder/refused"; then exit 1; fi
grep -q "password authentication failed for user" "$folder/refused"
echo password

same "$(ask <<'SQL'
set search_path = elsewhere, public;
set timezone = 'Asia/Tokyo';
begin; set local timezone = 'UTC'; commit;
show search_path;
show timezone;
reset search_path;
select current_setting('search_path') = reset_val from pg_settings where name = 'search_path';
SQL
)" 'elsewhere, public
Asia/Tokyo
t'
same "$(PGOPTIONS='-c search_path=from_options' PGTZ=Asia/Tokyo ask -c 'show search_path' -c 'show timezone')" 'from_options
Asia/Tokyo'
echo settings

same "$(ask -c 'listen psql' -c "notify psql, 'hello'" | cut -d' ' -f1-6)" 'Asynchronous notification "psql" with payload "hello"'
echo notify

same "$(ask <<'SQL'
create temp table mine (v text);
insert into mine values ('x');
select v from mine;
begin; select v from mine; commit;
\d mine
SQL
)" 'x
x
v|text|||'
same "$(ask -c "select to_regclass('mine') is null")" t
echo temporary
