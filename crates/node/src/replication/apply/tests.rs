//! The statements that the plans write, as text.
#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use synapsedb_core::change::{Column, Relation, ReplicaIdentity, Value};
use synapsedb_core::ids::NodeId;

use super::check::VersionCheck;
use super::column::{Local, LocalColumn};
use super::inherited::Inherited;
use super::plan::{Plan, RowChange, Shape};
use crate::replication::keys::{LocalKeys, UniqueIndex};

fn node(number: u16) -> NodeId {
    NodeId::new(number).unwrap()
}

fn column(name: &str, in_key: bool) -> Column {
    Column { name: name.into(), in_key, type_oid: 25, type_modifier: -1 }
}

fn local(name: &str, type_name: &str, in_primary_key: bool) -> LocalColumn {
    LocalColumn {
        name: name.into(),
        type_name: type_name.into(),
        always_identity: false,
        generated: false,
        in_primary_key,
        missing: None,
    }
}

fn relation(columns: Vec<Column>, identity: ReplicaIdentity) -> Relation {
    Relation { id: 7, schema: "public".into(), name: "t".into(), identity, columns }
}

fn check() -> VersionCheck {
    VersionCheck {
        origins: vec![(1, node(2)), (2, node(3))],
        ..VersionCheck::new(node(2), node(1), Inherited::default())
    }
}

fn sql(plan: &mut Plan, shape: &Shape, expected: Expect) {
    let (_, sql) = plan.statement(shape);
    let clauses = [
        " select ",
        " values ",
        " from ",
        " where ",
        " on conflict ",
        " do update ",
        " or ",
        " and ",
    ];
    let lines = clauses
        .iter()
        .fold(sql.unwrap(), |sql, clause| sql.replace(clause, &format!("\n{}", &clause[1..])));
    expected.assert_eq(&lines);
    let (_, again) = plan.statement(shape);
    assert_eq!(again, None, "a statement is prepared once");
}

/// A table with a primary key, whose columns stand in another order here.
fn keyed() -> Plan {
    let columns = vec![column("id", true), column("v", false)];
    let here = [local("v", "character varying(10)", false), local("id", "integer", true)];
    Plan::new(
        0,
        &relation(columns, ReplicaIdentity::Default),
        Local { columns: &here, ever: 3, gone: &[] },
        LocalKeys::default(),
        check(),
    )
    .unwrap()
}

#[test]
fn a_table_with_a_key_compares_versions() {
    let mut plan = keyed();
    sql(
        &mut plan,
        &Shape::Insert,
        expect![[r#"
            insert into "public"."t" as t ("id", "v") overriding system value
            select $1, $2
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)"#]],
    );
    sql(
        &mut plan,
        &Shape::Update(vec![true, true]),
        expect![[r#"
            with met as (update "public"."t" as t set "id" = $1, "v" = $2
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)
            and t."id" = $3
            and (pg_catalog.pg_xact_commit_timestamp(t.xmin) <= $4::timestamptz
            or (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = 1) is not false
            and t.xmin <> all (synapsedb.rewriters('"public"."t"'::pg_catalog.regclass)) returning 1)
            select synapsedb.unmet()
            where not exists (select
            from met)"#]],
    );
    sql(
        &mut plan,
        &Shape::Update(vec![true, false]),
        expect![[r#"
            with met as (update "public"."t" as t set "id" = $1
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)
            and t."id" = $2
            and (pg_catalog.pg_xact_commit_timestamp(t.xmin) <= $3::timestamptz
            or (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = 1) is not false
            and t.xmin <> all (synapsedb.rewriters('"public"."t"'::pg_catalog.regclass)) returning 1)
            select synapsedb.unmet()
            where not exists (select
            from met)"#]],
    );
    sql(
        &mut plan,
        &Shape::Delete,
        expect![[r#"
            with met as (delete
            from "public"."t" as t
            where t."id" = $1
            and (pg_catalog.pg_xact_commit_timestamp(t.xmin) <= $2::timestamptz
            or (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = 1) is not false
            and t.xmin <> all (synapsedb.rewriters('"public"."t"'::pg_catalog.regclass)) returning 1)
            select synapsedb.unmet()
            where not exists (select
            from met)"#]],
    );
}

#[test]
fn many_rows_of_a_table_with_a_key_are_counted() {
    let mut plan = keyed();
    sql(
        &mut plan,
        &Shape::InsertMany,
        expect![[r#"
            insert into "public"."t" as t ("id", "v") overriding system value
            select s.c1, s.c2::character varying(10)
            from (select unnest($1::integer[]), unnest($2::text[])) as s(c1, c2)
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)"#]],
    );
    sql(
        &mut plan,
        &Shape::UpdateMany(vec![true, false]),
        expect![[r#"
            with met as (update "public"."t" as t set "id" = s.c1
            from (select unnest($1::integer[]), unnest($2::integer[])) as s(c1, c2)
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)
            and t."id" = s.c2
            and (pg_catalog.pg_xact_commit_timestamp(t.xmin) <= $3::timestamptz
            or (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = 1) is not false
            and t.xmin <> all (synapsedb.rewriters('"public"."t"'::pg_catalog.regclass)) returning 1)
            select synapsedb.unmet()
            where (select count(*)
            from met) <> $4::bigint"#]],
    );
    sql(
        &mut plan,
        &Shape::DeleteMany,
        expect![[r#"
        with met as (delete
        from "public"."t" as t using (select unnest($1::integer[])) as s(c1)
        where t."id" = s.c1
        and (pg_catalog.pg_xact_commit_timestamp(t.xmin) <= $2::timestamptz
        or (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = 1) is not false
        and t.xmin <> all (synapsedb.rewriters('"public"."t"'::pg_catalog.regclass)) returning 1)
        select synapsedb.unmet()
        where (select count(*)
        from met) <> $3::bigint"#]],
    );
}

#[test]
fn a_table_without_a_key_is_found_by_its_whole_row() {
    let columns = vec![column("a", true), column("b", true)];
    let here = [local("a", "integer", false), local("b", "json", false)];
    let mut plan = Plan::new(
        3,
        &relation(columns, ReplicaIdentity::Full),
        Local { columns: &here, ever: 3, gone: &[] },
        LocalKeys::default(),
        check(),
    )
    .unwrap();
    sql(
        &mut plan,
        &Shape::Insert,
        expect![[r#"
            insert into "public"."t" as t ("a", "b") overriding system value
            select $1, $2
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)"#]],
    );
    sql(
        &mut plan,
        &Shape::Delete,
        expect![[r#"
            delete
            from "public"."t" as t
            where t.ctid = (select k.ctid
            from "public"."t" as k
            where k."a"::text is not distinct
            from $1::text
            and k."b"::text is not distinct
            from $2::text limit 1)"#]],
    );
}

#[test]
fn a_missing_column_is_named() {
    let columns = vec![column("id", true), column("added", false)];
    let here = [local("id", "integer", true)];
    let error = Plan::new(
        0,
        &relation(columns, ReplicaIdentity::Default),
        Local { columns: &here, ever: 3, gone: &[] },
        LocalKeys::default(),
        check(),
    )
    .err()
    .unwrap();
    expect![[r#"table public.t has no column "added" here, the origin has: add it, and the stream goes on"#]]
        .assert_eq(&error.to_string());
}

#[test]
fn on_a_copy_old_rows_without_an_origin_are_of_the_copied_node() {
    let local = [local("id", "bigint", true)];
    let relation = relation(vec![column("id", true)], ReplicaIdentity::Default);
    let inherited = Inherited::new(vec![(777, node(2))]);
    let check = VersionCheck {
        // Two lives of node 2, which was copied, and node 3.
        origins: vec![(1, node(2)), (4, node(2)), (2, node(3))],
        ..VersionCheck::new(node(2), node(1), inherited)
    };
    let mut plan = Plan::new(
        0,
        &relation,
        Local { columns: &local, ever: 3, gone: &[] },
        LocalKeys::default(),
        check,
    )
    .unwrap();
    sql(
        &mut plan,
        &Shape::Delete,
        expect![[r#"
            with met as (delete
            from "public"."t" as t
            where t."id" = $1
            and (pg_catalog.pg_xact_commit_timestamp(t.xmin) <= $2::timestamptz
            or (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident in (1, 4)
            or ((pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = 0
            and (case when pg_catalog.age(t.xmin) > pg_catalog.age('777'::pg_catalog.xid) then 2 else 1 end) = 2)) is not false
            and t.xmin <> all (synapsedb.rewriters('"public"."t"'::pg_catalog.regclass)) returning 1)
            select synapsedb.unmet()
            where not exists (select
            from met)"#]],
    );
}

#[test]
fn a_column_that_was_made_anew_here_is_as_in_all_rows_from_before() {
    let columns = vec![column("id", true), column("gone", false), column("v", false)];
    let gone = ["gone".to_owned()];
    let mut made = local("gone", "text", false);
    made.missing = Some("made".into());
    let here_too = [local("id", "integer", true), local("v", "text", false), made];
    let mut remade = Plan::new(
        0,
        &relation(columns, ReplicaIdentity::Default),
        Local { columns: &here_too, ever: 3, gone: &gone },
        LocalKeys::default(),
        check(),
    )
    .unwrap();
    sql(
        &mut remade,
        &Shape::Insert,
        expect![[r#"
            insert into "public"."t" as t ("id", "v", "gone") overriding system value
            select $1, $2, 'made'::text
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)"#]],
    );
}

#[test]
fn what_the_origin_does_not_have_yet_is_filled_in_and_what_is_gone_here_is_left_out() {
    let columns = vec![column("id", true), column("gone", false), column("v", false)];
    let mut added = local("added", "integer", false);
    added.missing = Some("7".into());
    let here = [local("id", "integer", true), local("v", "text", false), added];
    let gone = ["gone".to_owned()];
    let mut plan = Plan::new(
        0,
        &relation(columns.clone(), ReplicaIdentity::Default),
        Local { columns: &here, ever: 3, gone: &gone },
        LocalKeys::default(),
        check(),
    )
    .unwrap();
    sql(
        &mut plan,
        &Shape::Insert,
        expect![[r#"
            insert into "public"."t" as t ("id", "v", "added") overriding system value
            select $1, $2, '7'::integer
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)"#]],
    );
    sql(
        &mut plan,
        &Shape::InsertMany,
        expect![[r#"
            insert into "public"."t" as t ("id", "v", "added") overriding system value
            select s.c1, s.c2, '7'::integer
            from (select unnest($1::integer[]), unnest($2::text[])) as s(c1, c2)
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)"#]],
    );
    sql(
        &mut plan,
        &Shape::Update(vec![true, true, true]),
        expect![[r#"
            with met as (update "public"."t" as t set "id" = $1, "v" = $2
            where synapsedb.shaped('"public"."t"'::pg_catalog.regclass, 3)
            and t."id" = $3
            and (pg_catalog.pg_xact_commit_timestamp(t.xmin) <= $4::timestamptz
            or (pg_catalog.pg_xact_commit_timestamp_origin(t.xmin)).roident = 1) is not false
            and t.xmin <> all (synapsedb.rewriters('"public"."t"'::pg_catalog.regclass)) returning 1)
            select synapsedb.unmet()
            where not exists (select
            from met)"#]],
    );
    let row = [Value::Text(b"1"), Value::Text(b"lost"), Value::Text(b"x")];
    assert_eq!(plan.parameters(&RowChange::Insert(&row), None).len(), 2);
    let values: Vec<_> = plan.values(&RowChange::Update(&row, &row)).collect();
    assert_eq!(values, [row[0], row[2], row[0]]);
    let never = Plan::new(
        0,
        &relation(columns, ReplicaIdentity::Default),
        Local { columns: &here, ever: 3, gone: &[] },
        LocalKeys::default(),
        check(),
    );
    assert!(never.is_err(), "a column that never was here is no small thing");
}

#[test]
fn only_changes_that_are_in_nobodys_way_go_as_one_statement() {
    let columns = vec![column("id", true), column("v", false)];
    let here = [local("id", "integer", true), local("v", "text", false)];
    let index = |is_primary: bool, name: &str| {
        let flags = [is_primary, true, false];
        UniqueIndex::new(name, flags, &format!("[\"{name}\"]")).unwrap()
    };
    let plan = |indexes| {
        let relation = relation(columns.clone(), ReplicaIdentity::Default);
        let local = Local { columns: &here, ever: 3, gone: &[] };
        Plan::new(0, &relation, local, LocalKeys::new(indexes, None), check()).unwrap()
    };
    let [one, two] =
        [[Value::Text(b"1"), Value::Text(b"x")], [Value::Text(b"2"), Value::Text(b"x")]];
    let changes = [
        RowChange::Insert(&one),
        RowChange::Update(&one, &one),
        RowChange::Update(&one, &two),
        RowChange::Delete(&one),
    ];
    for (plan, expected) in [
        (plan(vec![index(true, "id")]), [true, true, false, true]),
        (plan(vec![index(true, "id"), index(false, "v")]), [true, false, false, true]),
        (plan(vec![]), [true, false, false, false]),
    ] {
        assert_eq!(changes.each_ref().map(|change| plan.takes_many(change)), expected);
    }
    let keyed = plan(vec![index(true, "id")]);
    assert_eq!(keyed.row_of(&changes[1]), keyed.row_of(&changes[3]));
    assert_ne!(keyed.row_of(&changes[1]), keyed.row_of(&RowChange::Delete(&two)));
    assert_eq!(keyed.row_of(&changes[0]), None);
}
