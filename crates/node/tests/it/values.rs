//! Every built-in type, arrays, enums, jsonb and vector arrive as they were written.

use crate::{shared, skip};

/// Column type and three values: an ordinary one, an extreme or odd one, and what the row is updated to.
const TYPES: &[(&str, [&str; 3])] = &[
    ("bool", ["true", "false", "null"]),
    ("int2", ["1", "-32768", "32767"]),
    ("int4", ["1", "-2147483648", "2147483647"]),
    ("int8", ["1", "-9223372036854775808", "9223372036854775807"]),
    ("numeric", ["1.5", "'NaN'", "-1e-300"]),
    ("numeric(20, 6)", ["1.500000", "-99999999999999.999999", "0"]),
    ("float4", ["1.1", "'-Infinity'", "1.17549435e-38"]),
    ("float8", ["0.1", "'NaN'", "4.9e-324"]),
    ("money", ["'12.34'", "'-92233720368547758.08'", "0"]),
    ("char(7)", ["'abc'", "''", "'üß€'"]),
    ("varchar(40)", ["'abc'", "''", "'tab\tand \"quotes\" and back\\slash'"]),
    ("text", ["'abc'", "''", "E'line\\nbreak | pipe, {brace}, \\\\N ''quote'' 😀'"]),
    ("name", ["'abc'", "''", "'Mixed Case'"]),
    ("\"char\"", ["'a'", "''", "'z'"]),
    ("bytea", ["'\\x00ff'", "''", "'\\xdeadbeef005c27'"]),
    ("date", ["'2024-02-29'", "'infinity'", "'4713-01-01 BC'"]),
    ("time", ["'12:34:56.789012'", "'00:00'", "'24:00'"]),
    ("timetz", ["'12:34:56+02'", "'00:00-15:59'", "'23:59:59.999999+15:59'"]),
    (
        "timestamp",
        ["'2024-02-29 12:34:56.789012'", "'-infinity'", "'294276-12-31 23:59:59.999999'"],
    ),
    ("timestamptz", ["'2024-02-29 12:34:56.789012+02'", "'infinity'", "'0044-03-15 BC'"]),
    ("interval", ["'1 year 2 mons -3 days 04:05:06.7'", "'0'", "'-178000000 years'"]),
    (
        "uuid",
        [
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            "null",
            "'00000000-0000-0000-0000-000000000000'",
        ],
    ),
    ("json", ["'{\"b\": 1,  \"a\": [1, 2]}'", "'null'", "'\"\\u20ac\"'"]),
    ("jsonb", ["'{\"b\": 1, \"a\": [1, {\"c\": null}]}'", "'[]'", "'{\"k\": \"v|\\\"\\\\\"}'"]),
    ("jsonpath", ["'$.a[*] ? (@ > 1)'", "'$'", "'strict $.\"b\"'"]),
    ("xml", ["'<a>1</a>'", "''", "'<b x=\"1\"/>'"]),
    ("inet", ["'192.168.0.1/24'", "'::1'", "'10.0.0.1'"]),
    ("cidr", ["'192.168.0.0/24'", "'::/0'", "'10.0.0.0/8'"]),
    ("macaddr", ["'08:00:2b:01:02:03'", "null", "'ff:ff:ff:ff:ff:ff'"]),
    ("macaddr8", ["'08:00:2b:01:02:03:04:05'", "null", "'ff:ff:ff:ff:ff:ff:ff:ff'"]),
    ("point", ["'(1.5,-2)'", "'(0,0)'", "'(1e300,-1e300)'"]),
    ("line", ["'{1,2,3}'", "'{1,0,0}'", "'{0.1,-0.2,0.3}'"]),
    ("lseg", ["'[(0,0),(1,1)]'", "null", "'[(1.5,2),(3,4)]'"]),
    ("box", ["'(2,2),(0,0)'", "null", "'(1.5,2),(1,1)'"]),
    ("path", ["'((0,0),(1,1),(2,0))'", "'[(0,0)]'", "'[(0,0),(1.5,1)]'"]),
    ("polygon", ["'((0,0),(1,1),(2,0))'", "null", "'((0.5,0))'"]),
    ("circle", ["'<(1,2),3>'", "null", "'<(0,0),0>'"]),
    ("bit(5)", ["B'10101'", "B'00000'", "B'11111'"]),
    ("varbit", ["B'1'", "B''", "B'110011001100'"]),
    ("tsvector", ["'a fat cat'::tsvector", "''", "to_tsvector('english', 'The quick foxes')"]),
    ("tsquery", ["'fat & (rat | cat)'", "null", "'a:* & !b'"]),
    ("oid", ["1", "0", "4294967295"]),
    ("regclass", ["'pg_class'", "null", "'pg_type'"]),
    ("xid8", ["'1'", "null", "'18446744073709551615'"]),
    ("pg_lsn", ["'0/16B3748'", "'0/0'", "'FFFFFFFF/FFFFFFFF'"]),
    ("int4range", ["'[1,5)'", "'empty'", "'(,10)'"]),
    ("int8range", ["'[1,5)'", "'empty'", "'(,)'"]),
    ("numrange", ["'[1.5,5]'", "'empty'", "'(,0)'"]),
    ("tsrange", ["'[2024-01-01, 2024-02-01)'", "'empty'", "'[2024-01-01,)'"]),
    ("tstzrange", ["'[2024-01-01 00:00+00, 2024-02-01 00:00+00)'", "'empty'", "'(,)'"]),
    ("daterange", ["'[2024-01-01, 2024-02-01)'", "'empty'", "'[,2024-01-01]'"]),
    ("int4multirange", ["'{[1,3),[5,9)}'", "'{}'", "'{(,1)}'"]),
    ("datemultirange", ["'{[2024-01-01,2024-02-01)}'", "'{}'", "'{(,)}'"]),
    ("int4[]", ["'{1,2,null}'", "'{}'", "'[0:1][1:2]={{1,2},{3,4}}'"]),
    ("text[]", ["'{a,\"b c\",null}'", "'{}'", "'{\"NULL\",\"q\\\"uote\",\"back\\\\slash\",\"\"}'"]),
    ("jsonb[]", ["array['{\"a\": 1}']::jsonb[]", "'{}'", "array['[1, 2]', null]::jsonb[]"]),
    ("timestamptz[]", ["'{2024-01-01 00:00+00}'", "'{}'", "'{infinity,null}'"]),
];

/// The definition of the columns `c0`, `c1`, … and one row of values.
fn columns() -> String {
    let columns = TYPES.iter().enumerate().map(|(number, (name, _))| format!("c{number} {name}"));
    columns.collect::<Vec<_>>().join(", ")
}

fn values(which: usize) -> String {
    TYPES.iter().map(|(_, values)| values[which]).collect::<Vec<_>>().join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_built_in_type_round_trips() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(&format!("create table every_type (id int primary key, {})", columns()))
        .await;
    let all = "select t::text from every_type t order by id";
    let nulls = vec!["null"; TYPES.len()].join(", ");
    for (id, values) in [(1, values(0)), (2, values(1)), (3, values(2)), (4, nulls)] {
        cluster.node(1).sql(&format!("insert into every_type values ({id}, {values})")).await;
    }
    cluster.all_show_as(1, all).await;
    assert_eq!(cluster.node(2).rows(all).await.len(), 4);

    for (number, (name, values)) in TYPES.iter().enumerate() {
        let update =
            format!("update every_type set c{number} = ({})::{name} where id in (1, 4)", values[2]);
        cluster.node(2).sql(&update).await;
    }
    cluster.all_show("select count(*) from every_type where c0 is null", &["3"]).await;
    cluster.all_show_as(2, all).await;

    cluster.node(3).sql("delete from every_type where id = 2").await;
    cluster.all_show("select id from every_type order by id", &["1", "3", "4"]).await;
    cluster.node(1).sql("truncate every_type").await;
    cluster.all_show(all, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn enums_domains_and_composites_round_trip() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create type mood as enum ('sad', 'ok', 'it''s, \"fine\"');
             create domain positive as int check (value > 0);
             create type place as (street text, number positive, moods mood[]);
             create table feelings (id int primary key, mood mood, moods mood[], n positive, place place)",
        )
        .await;
    cluster
        .node(1)
        .sql(
            "insert into feelings values (1, 'sad', '{sad,ok}', 7, row('a, (b)', 3, '{ok}')),
             (2, null, null, null, null)",
        )
        .await;
    let all = "select f::text from feelings f order by id";
    cluster.all_show("select count(*) from feelings", &["2"]).await;
    cluster.all_show_as(1, all).await;
    cluster.node(3).sql("alter type mood add value 'elated' after 'ok'").await;
    cluster
        .all_show(
            "select string_agg(enumlabel, '/' order by enumsortorder) from pg_enum
             where enumtypid = to_regtype('mood')",
            &["sad/ok/elated/it's, \"fine\""],
        )
        .await;
    cluster
        .node(2)
        .sql("update feelings set mood = 'elated', place.moods = '{elated,sad}' where id = 1")
        .await;
    cluster
        .all_show("select mood, (place).moods from feelings where id = 1", &["elated|{elated,sad}"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_round_trip() {
    let cluster = shared().await;
    let available = "select count(*) from pg_available_extensions where name = 'vector'";
    if cluster.node(1).value(available).await == "0" {
        return skip("pgvector is not installed");
    }
    cluster.node(1).sql("create extension if not exists vector").await;
    cluster.node(1).sql("create table embeddings (id int primary key, embedding vector(3))").await;
    cluster
        .node(1)
        .sql("insert into embeddings values (1, '[1,2.5,-3]'), (2, null), (3, '[0,0,1e-20]')")
        .await;
    cluster
        .all_show(
            "select id, embedding from embeddings order by id",
            &["1|[1,2.5,-3]", "2|", "3|[0,0,1e-20]"],
        )
        .await;
    cluster.node(2).sql("create index on embeddings using hnsw (embedding vector_l2_ops)").await;
    cluster.node(2).sql("update embeddings set embedding = '[9,9,9]' where id = 2").await;
    cluster
        .all_show("select id from embeddings order by embedding <-> '[9,9,8]' limit 1", &["2"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_that_was_not_touched_is_kept() {
    let cluster = shared().await;
    cluster.node(1).sql("create table toasted (id int primary key, big text, small int)").await;
    // Random text does not compress: it is stored out of line and not sent again when another column changes.
    cluster
        .node(1)
        .sql(
            "insert into toasted select 1, string_agg(md5(n::text || random()), ''), 0 from generate_series(1, 5000) n",
        )
        .await;
    let look = "select length(big), md5(big), small from toasted";
    cluster.all_show("select length(big) from toasted", &["160000"]).await;
    cluster.node(2).sql("update toasted set small = 1").await;
    cluster.all_show("select small from toasted", &["1"]).await;
    cluster.all_show_as(1, look).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_generated_everywhere() {
    let cluster = shared().await;
    cluster
        .node(1)
        .sql(
            "create table generated (id int primary key, a int,
             b int generated always as (a * 2) stored)",
        )
        .await;
    cluster.node(1).sql("insert into generated (id, a) values (1, 21)").await;
    cluster.all_show("select a, b from generated", &["21|42"]).await;
    cluster.node(3).sql("update generated set a = 4").await;
    cluster.all_show("select a, b from generated", &["4|8"]).await;
}
