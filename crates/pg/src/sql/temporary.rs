//! Whether a statement is about an object that only its session sees.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, RangeVar, SelectStmt};

/// Whether the statement makes, changes or drops a temporary object, as far as its text tells: `TEMP` or the schema
/// `pg_temp`. (A temporary table named without its schema in `ALTER TABLE` is known to its session only.)
pub(super) fn is(node: &NodeEnum) -> bool {
    let relation = |relation: &Option<RangeVar>| relation.as_ref().is_some_and(is_relation);
    match node {
        NodeEnum::CreateStmt(create) => relation(&create.relation),
        NodeEnum::CreateForeignTableStmt(create) => {
            create.base_stmt.as_ref().is_some_and(|base| relation(&base.relation))
        }
        NodeEnum::CreateTableAsStmt(create) => {
            create.into.as_ref().is_some_and(|into| relation(&into.rel))
        }
        NodeEnum::SelectStmt(select) => makes_temporary(select),
        NodeEnum::ViewStmt(view) => relation(&view.view),
        NodeEnum::CreateSeqStmt(create) => relation(&create.sequence),
        NodeEnum::AlterSeqStmt(alter) => relation(&alter.sequence),
        NodeEnum::IndexStmt(index) => relation(&index.relation),
        NodeEnum::AlterTableStmt(alter) => relation(&alter.relation),
        NodeEnum::RenameStmt(rename) => relation(&rename.relation),
        NodeEnum::AlterObjectSchemaStmt(alter) => relation(&alter.relation),
        NodeEnum::AlterOwnerStmt(alter) => relation(&alter.relation),
        NodeEnum::CreateTrigStmt(create) => relation(&create.relation),
        NodeEnum::RuleStmt(rule) => relation(&rule.relation),
        NodeEnum::CreatePolicyStmt(create) => relation(&create.table),
        NodeEnum::AlterPolicyStmt(alter) => relation(&alter.table),
        NodeEnum::RefreshMatViewStmt(refresh) => relation(&refresh.relation),
        NodeEnum::ReindexStmt(reindex) => relation(&reindex.relation),
        NodeEnum::CompositeTypeStmt(create) => relation(&create.typevar),
        NodeEnum::CreateFunctionStmt(create) => is_name(&create.funcname),
        NodeEnum::CreateEnumStmt(create) => is_name(&create.type_name),
        NodeEnum::CreateRangeStmt(create) => is_name(&create.type_name),
        NodeEnum::CreateDomainStmt(create) => is_name(&create.domainname),
        NodeEnum::DefineStmt(define) => is_name(&define.defnames),
        NodeEnum::CreateStatsStmt(create) => is_name(&create.defnames),
        NodeEnum::AlterFunctionStmt(alter) => {
            alter.func.as_ref().is_some_and(|function| is_name(&function.objname))
        }
        NodeEnum::DropStmt(drop) => drop.objects.iter().any(is_object),
        NodeEnum::CommentStmt(comment) => {
            comment.object.as_ref().is_some_and(|node| is_object(node))
        }
        NodeEnum::GrantStmt(grant) => grant.objects.iter().any(is_object),
        _ => false,
    }
}

/// Whether the SELECT's INTO, which stands in the leftmost branch of a UNION, makes a temporary table.
fn makes_temporary(select: &SelectStmt) -> bool {
    match (&select.larg, &select.into_clause) {
        (Some(left), _) => makes_temporary(left),
        (None, Some(into)) => into.rel.as_ref().is_some_and(is_relation),
        (None, None) => false,
    }
}

fn is_relation(relation: &RangeVar) -> bool {
    relation.relpersistence == "t" || is_schema(&relation.schemaname)
}

/// `pg_temp`, or the session's own name for it.
fn is_schema(name: &str) -> bool {
    name.strip_prefix("pg_temp").is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// A qualified name, as a list of strings.
fn is_name(parts: &[Node]) -> bool {
    parts.len() > 1
        && parts
            .iter()
            .any(|part| matches!(&part.node, Some(NodeEnum::String(text)) if is_schema(&text.sval)))
}

/// An object as DROP, COMMENT and GRANT name it.
fn is_object(object: &Node) -> bool {
    match &object.node {
        Some(NodeEnum::List(list)) => is_name(&list.items),
        Some(NodeEnum::ObjectWithArgs(function)) => is_name(&function.objname),
        Some(NodeEnum::TypeName(name)) => is_name(&name.names),
        Some(NodeEnum::RangeVar(relation)) => is_relation(relation),
        _ => false,
    }
}
