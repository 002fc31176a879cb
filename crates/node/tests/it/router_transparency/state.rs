//! What a session has set and what it holds.

use super::script::{q, same, sync, x};

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_kept_and_reset_to_the_clients_own_start() {
    let startup = [("search_path", "from_startup"), ("options", "-c statement_timeout=5min")];
    same(
        "settings",
        &startup,
        &[
            q("show search_path").shows(&["D from_startup"]),
            q("show statement_timeout").shows(&["D 5min"]),
            q("set search_path = a, b"),
            q("show search_path").shows(&["D a, b"]),
            q("set statement_timeout = '7min'"),
            q("reset search_path"),
            q("show search_path").shows(&["D from_startup"]),
            q("show statement_timeout").shows(&["D 7min"]),
            q("set search_path to default"),
            q("show search_path").shows(&["D from_startup"]),
            q("set timezone = 'Asia/Tokyo'").shows(&["S TimeZone=Asia/Tokyo"]),
            q("set application_name = 'mine'").shows(&["S application_name=mine"]),
            q("reset all"),
            q("select current_setting('timezone'), current_setting('application_name')"),
            q("show statement_timeout").shows(&["D 5min"]),
            q("set search_path = c"),
            q("discard all"),
            q("show search_path").shows(&["D from_startup"]),
            q("show statement_timeout").shows(&["D 5min"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_reported_is_the_clients_own() {
    let startup = [("TimeZone", "Asia/Tokyo"), ("application_name", "its own")];
    same(
        "reported",
        &startup,
        &[
            q("set timezone = 'Europe/Rome'").shows(&["C SET", "S TimeZone=Europe/Rome", "Z I"]),
            q("select 1"),
            q("reset timezone").shows(&["C RESET", "S TimeZone=Asia/Tokyo", "Z I"]),
            q("show timezone").shows(&["D Asia/Tokyo"]),
            q("set timezone to default").shows(&["C SET", "Z I"]),
            q("select 1"),
            q("set timezone = 'Europe/Rome'; set application_name = 'another'"),
            q("begin; reset timezone"),
            q("rollback"),
            q("show timezone").shows(&["D Europe/Rome"]),
            q("begin; set local timezone = 'Asia/Kolkata'"),
            q("commit").shows(&["S TimeZone=Europe/Rome"]),
            q("discard all"),
            q("select current_setting('timezone'), current_setting('application_name')")
                .shows(&["D Asia/Tokyo|its own"]),
            q("select set_config('timezone', 'Europe/Rome', false)"),
            q("reset all"),
            q("select 1"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_follow_their_transaction() {
    same(
        "following",
        &[],
        &[
            q("set search_path = before"),
            q("begin"),
            q("set search_path = undone"),
            q("set local timezone = 'Asia/Tokyo'").shows(&["S TimeZone=Asia/Tokyo"]),
            q("rollback"),
            q("show search_path").shows(&["D before"]),
            q("select current_setting('timezone') = 'Asia/Tokyo'").shows(&["D f"]),
            q("begin; set search_path = done; commit"),
            q("show search_path").shows(&["D done"]),
            q("begin; savepoint s; set search_path = undone; rollback to s; set lock_timeout = 99; commit"),
            q("show search_path").shows(&["D done"]),
            q("show lock_timeout").shows(&["D 99ms"]),
            // Undone, since one transaction holds all statements of a query.
            q("set search_path = undone; select 1/0"),
            q("show search_path").shows(&["D done"]),
            q("begin; set local search_path = only_here; commit"),
            q("show search_path").shows(&["D done"]),
            q("begin; set search_path = failed; select 1/0"),
            q("commit").shows(&["C ROLLBACK"]),
            q("show search_path").shows(&["D done"]),
            // Not by SET.
            q("select set_config('search_path', 'by_function', false)"),
            q("show search_path").shows(&["D by_function"]),
            q("select set_config('search_path', 'locally', true)"),
            q("show search_path").shows(&["D by_function"]),
            q("do $$ begin perform set_config('search_path', 'by_block', false); end $$"),
            q("show search_path").shows(&["D by_block"]),
            q("set my.own = 'a ''quoted'' value'"),
            q("show my.own").shows(&["D a 'quoted' value"]),
            q("update pg_settings set setting = 'by_view' where name = 'search_path'"),
            q("show search_path").shows(&["D by_view"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_ways_to_write_a_setting_are_kept_too() {
    same(
        "odd_settings",
        &[],
        &[
            q("/* first */ SET SESSION search_path TO \"A b\", c -- last"),
            q("show search_path").shows(&["D \"A b\", c"]),
            q("set time zone 'Asia/Tokyo'"),
            q("show timezone").shows(&["D Asia/Tokyo"]),
            q("set time zone interval '-08:00' hour to minute"),
            q("show timezone").shows(&["D <-08>+08"]),
            q("set time zone local"),
            q("set names 'latin1'").shows(&["S client_encoding=LATIN1"]),
            q("reset client_encoding").shows(&["S client_encoding=UTF8"]),
            q("set schema 'one'"),
            q("show search_path").shows(&["D one"]),
            q("set seed to 0.5"),
            q("set xml option document"),
            q("show xmloption").shows(&["D document"]),
            q("set datestyle = 'SQL, DMY'"),
            q("select date '2024-02-01'").shows(&["D 01/02/2024"]),
            q("set extra_float_digits = -3"),
            q("select 0.1::float8 + 0.2::float8").shows(&["D 0.3"]),
            q("select 1; set search_path = two; select 2"),
            q("show search_path").shows(&["D two"]),
            q("set no_such_setting = 1"),
            q("set search_path = three \\; nonsense"),
            q("show search_path").shows(&["D two"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_is_kept() {
    same(
        "role",
        &[],
        &[
            q("set role noise"),
            q("select current_user, session_user").shows(&["D noise|synapsedb"]),
            q("create table refused (v text)"),
            q("reset role"),
            q("select current_user").shows(&["D synapsedb"]),
            q("begin; set local role noise; select current_user; commit").shows(&["D noise"]),
            q("select current_user").shows(&["D synapsedb"]),
            q("set role noise"),
            q("discard all"),
            q("select current_user").shows(&["D synapsedb"]),
            q("set session authorization synapsedb"),
            q("select current_user").shows(&["D synapsedb"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_read_only_flag_is_kept() {
    same(
        "read_only",
        &[],
        &[
            q("insert into items values (2, 'two')").shows(&["C INSERT 0 1"]),
            q("set default_transaction_read_only = on"),
            q("insert into items values (3, 'three')"),
            q("set default_transaction_read_only = off"),
            q("insert into items values (3, 'three')").shows(&["C INSERT 0 1"]),
            q("set session characteristics as transaction read only, isolation level serializable"),
            q("show transaction_isolation").shows(&["D serializable"]),
            q("insert into items values (4, 'four')"),
            q("set session characteristics as transaction read write, isolation level read committed"),
            q("insert into items values (4, 'four')").shows(&["C INSERT 0 1"]),
            q("begin read only; select 1; commit"),
            q("insert into items values (5, 'five')").shows(&["C INSERT 0 1"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_tables_are_kept_and_are_nobody_elses() {
    same(
        "temporary",
        &[],
        &[
            q("create temp table mine (v text)"),
            q("insert into mine values ('x')").shows(&["C INSERT 0 1"]),
            q("select v from mine").shows(&["D x"]),
            q("begin; create temp table shortly (v text) on commit drop; commit"),
            q("select to_regclass('shortly') is null").shows(&["D t"]),
            q("select v into temporary another from mine"),
            q("select v from pg_temp.another").shows(&["D x"]),
            q("create table pg_temp.third as select 3 as n"),
            q("select n from third").shows(&["D 3"]),
            q("discard temp"),
            q("select to_regclass('mine') is null").shows(&["D t"]),
            q("create temp view seen as select 1 as n"),
            q("select n from seen").shows(&["D 1"]),
            q("create function pg_temp.one() returns int language sql as 'select 1'"),
            q("select pg_temp.one()").shows(&["D 1"]),
            q("do $$ begin create temp table hidden (v text); end $$"),
            q("select count(*) from hidden").shows(&["D 0"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn advisory_locks_are_kept() {
    let held =
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()";
    same(
        "advisory",
        &[],
        &[
            q("select pg_advisory_lock(1)"),
            q(held).shows(&["D 1"]),
            q("select pg_try_advisory_lock_shared(2, 3)").shows(&["D t"]),
            q(held).shows(&["D 2"]),
            q("select pg_advisory_unlock(1)").shows(&["D t"]),
            q(held).shows(&["D 1"]),
            q("select pg_advisory_unlock_all()"),
            q(held).shows(&["D 0"]),
            q("select pg_advisory_unlock(1)").shows(&["D f"]),
            q("begin; select pg_advisory_xact_lock(4); commit"),
            q(held).shows(&["D 0"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_that_outlive_their_transaction_are_kept() {
    same(
        "cursor",
        &[],
        &[
            q("begin"),
            q("declare c cursor with hold for select generate_series(1, 5)"),
            q("fetch 2 from c").shows(&["D 1", "D 2"]),
            q("commit"),
            q("fetch 2 from c").shows(&["D 3", "D 4"]),
            q("select name, is_holdable from pg_cursors").shows(&["D c|t"]),
            q("close c"),
            q("fetch 1 from c"),
            q("declare d cursor with hold for select 1"),
            q("fetch d").shows(&["D 1"]),
            q("close all"),
            q("fetch d"),
            q("begin; declare e cursor for select generate_series(1, 5); fetch 2 from e; commit"),
            q("fetch e"),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_arrive() {
    same(
        "listen",
        &[],
        &[
            q("listen one"),
            q("notify one, 'first'").shows(&["A own one first"]),
            q("select pg_listening_channels()").shows(&["D one"]),
            q("begin; listen two; notify two, 'second'; commit").shows(&["A own two second"]),
            q("begin; notify two, 'undone'; rollback"),
            q("select count(*) from (select pg_listening_channels()) c").shows(&["D 2"]),
            q("unlisten one"),
            q("notify one, 'nobody hears'"),
            q("select pg_notify('two', 'by function')").shows(&["A own two by function"]),
            q("begin; unlisten two; rollback"),
            q("notify two").shows(&["A own two"]),
            q("unlisten *"),
            q("notify two"),
            q("select count(*) from (select pg_listening_channels()) c").shows(&["D 0"]),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_has_one_process() {
    let steps = [
        q("begin"),
        q("do $$ begin perform set_config('my.pid', pg_backend_pid()::text, true); end $$"),
        q("select current_setting('my.pid') = pg_backend_pid()::text").shows(&["D t"]),
        q("savepoint s"),
        q("select 1/0"),
        q("rollback to s"),
        q("select current_setting('my.pid') = pg_backend_pid()::text").shows(&["D t"]),
        x([sync()]).shows(&["Z T"]),
        q("commit"),
        q("select txid_current_if_assigned() is null").shows(&["D t"]),
    ];
    same("process", &[], &steps).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loaded_sequences_values_and_seeds_are_kept() {
    same(
        "sequence",
        &[],
        &[
            q("create sequence numbers"),
            q("select nextval('numbers')").shows(&["D 1"]),
            q("select currval('numbers'), lastval()").shows(&["D 1|1"]),
            q("discard sequences"),
            q("select lastval()"),
            q("select setseed(0.5)"),
            q("select random() < 2").shows(&["D t"]),
        ],
    )
    .await;
}
