//! The command tag of a statement, as PostgreSQL's `CreateCommandTag` gives it.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    DiscardMode, ObjectType, SelectStmt, TransactionStmtKind, VariableSetKind,
};

/// PostgreSQL's tag for what it does not know either.
pub(super) const UNKNOWN: &str = "???";

/// The tag of a statement.
pub(super) fn of(node: &NodeEnum) -> &'static str {
    queries(node)
        .or_else(|| relations(node))
        .or_else(|| routines_and_types(node))
        .or_else(|| access(node))
        .or_else(|| foreign_and_replicated(node))
        .or_else(|| sessions(node))
        .unwrap_or(UNKNOWN)
}

fn queries(node: &NodeEnum) -> Option<&'static str> {
    Some(match node {
        NodeEnum::SelectStmt(select) => select_tag(select),
        NodeEnum::InsertStmt(_) => "INSERT",
        NodeEnum::UpdateStmt(_) => "UPDATE",
        NodeEnum::DeleteStmt(_) => "DELETE",
        NodeEnum::MergeStmt(_) => "MERGE",
        NodeEnum::CopyStmt(_) => "COPY",
        NodeEnum::CallStmt(_) => "CALL",
        NodeEnum::DoStmt(_) => "DO",
        NodeEnum::TruncateStmt(_) => "TRUNCATE TABLE",
        NodeEnum::ExplainStmt(_) => "EXPLAIN",
        NodeEnum::PrepareStmt(_) => "PREPARE",
        NodeEnum::ExecuteStmt(_) => "EXECUTE",
        NodeEnum::DeallocateStmt(deallocate) if deallocate.isall => "DEALLOCATE ALL",
        NodeEnum::DeallocateStmt(_) => "DEALLOCATE",
        NodeEnum::DeclareCursorStmt(_) => "DECLARE CURSOR",
        NodeEnum::FetchStmt(fetch) if fetch.ismove => "MOVE",
        NodeEnum::FetchStmt(_) => "FETCH",
        NodeEnum::ClosePortalStmt(close) if close.portalname.is_empty() => "CLOSE CURSOR ALL",
        NodeEnum::ClosePortalStmt(_) => "CLOSE CURSOR",
        _ => return None,
    })
}

/// A SELECT with INTO makes a table.
fn select_tag(select: &SelectStmt) -> &'static str {
    if super::has_into(select) { "SELECT INTO" } else { "SELECT" }
}

fn relations(node: &NodeEnum) -> Option<&'static str> {
    Some(match node {
        NodeEnum::CreateStmt(_) => "CREATE TABLE",
        NodeEnum::CreateTableAsStmt(create) if create.is_select_into => "SELECT INTO",
        NodeEnum::CreateTableAsStmt(create) => {
            if create.objtype == ObjectType::ObjectMatview as i32 {
                "CREATE MATERIALIZED VIEW"
            } else {
                "CREATE TABLE AS"
            }
        }
        NodeEnum::RefreshMatViewStmt(_) => "REFRESH MATERIALIZED VIEW",
        NodeEnum::ViewStmt(_) => "CREATE VIEW",
        NodeEnum::IndexStmt(_) => "CREATE INDEX",
        NodeEnum::ReindexStmt(_) => "REINDEX",
        NodeEnum::CreateSeqStmt(_) => "CREATE SEQUENCE",
        NodeEnum::AlterSeqStmt(_) => "ALTER SEQUENCE",
        NodeEnum::CreateSchemaStmt(_) => "CREATE SCHEMA",
        NodeEnum::CreateTrigStmt(_) => "CREATE TRIGGER",
        NodeEnum::RuleStmt(_) => "CREATE RULE",
        NodeEnum::CreatePolicyStmt(_) => "CREATE POLICY",
        NodeEnum::AlterPolicyStmt(_) => "ALTER POLICY",
        NodeEnum::CreateStatsStmt(_) => "CREATE STATISTICS",
        NodeEnum::AlterStatsStmt(_) => "ALTER STATISTICS",
        NodeEnum::AlterTableStmt(alter) => alter_tag(alter.objtype),
        NodeEnum::AlterTableMoveAllStmt(alter) => alter_tag(alter.objtype),
        NodeEnum::RenameStmt(rename) => {
            let column = rename.rename_type == ObjectType::ObjectColumn as i32;
            alter_tag(if column { rename.relation_type } else { rename.rename_type })
        }
        NodeEnum::AlterObjectSchemaStmt(alter) => alter_tag(alter.object_type),
        NodeEnum::AlterOwnerStmt(alter) => alter_tag(alter.object_type),
        NodeEnum::AlterObjectDependsStmt(alter) => alter_tag(alter.object_type),
        NodeEnum::DropStmt(drop) => drop_tag(drop.remove_type),
        NodeEnum::CommentStmt(_) => "COMMENT",
        NodeEnum::SecLabelStmt(_) => "SECURITY LABEL",
        _ => return None,
    })
}

fn routines_and_types(node: &NodeEnum) -> Option<&'static str> {
    Some(match node {
        NodeEnum::CreateFunctionStmt(create) if create.is_procedure => "CREATE PROCEDURE",
        NodeEnum::CreateFunctionStmt(_) => "CREATE FUNCTION",
        NodeEnum::AlterFunctionStmt(alter) => alter_tag(alter.objtype),
        NodeEnum::CreateEnumStmt(_)
        | NodeEnum::CompositeTypeStmt(_)
        | NodeEnum::CreateRangeStmt(_) => "CREATE TYPE",
        NodeEnum::AlterEnumStmt(_) | NodeEnum::AlterTypeStmt(_) => "ALTER TYPE",
        NodeEnum::CreateDomainStmt(_) => "CREATE DOMAIN",
        NodeEnum::AlterDomainStmt(_) => "ALTER DOMAIN",
        NodeEnum::DefineStmt(define) => define_tag(define.kind),
        NodeEnum::CreateCastStmt(_) => "CREATE CAST",
        NodeEnum::CreateConversionStmt(_) => "CREATE CONVERSION",
        NodeEnum::CreateTransformStmt(_) => "CREATE TRANSFORM",
        NodeEnum::CreateOpClassStmt(_) => "CREATE OPERATOR CLASS",
        NodeEnum::CreateOpFamilyStmt(_) => "CREATE OPERATOR FAMILY",
        NodeEnum::AlterOpFamilyStmt(_) => "ALTER OPERATOR FAMILY",
        NodeEnum::AlterOperatorStmt(_) => "ALTER OPERATOR",
        NodeEnum::AlterCollationStmt(_) => "ALTER COLLATION",
        NodeEnum::AlterTsdictionaryStmt(_) => "ALTER TEXT SEARCH DICTIONARY",
        NodeEnum::AlterTsconfigurationStmt(_) => "ALTER TEXT SEARCH CONFIGURATION",
        NodeEnum::CreatePlangStmt(_) => "CREATE LANGUAGE",
        NodeEnum::CreateAmStmt(_) => "CREATE ACCESS METHOD",
        NodeEnum::CreateEventTrigStmt(_) => "CREATE EVENT TRIGGER",
        NodeEnum::AlterEventTrigStmt(_) => "ALTER EVENT TRIGGER",
        NodeEnum::CreateExtensionStmt(_) => "CREATE EXTENSION",
        NodeEnum::AlterExtensionStmt(_) | NodeEnum::AlterExtensionContentsStmt(_) => {
            "ALTER EXTENSION"
        }
        _ => return None,
    })
}

fn access(node: &NodeEnum) -> Option<&'static str> {
    Some(match node {
        NodeEnum::GrantStmt(grant) if grant.is_grant => "GRANT",
        NodeEnum::GrantStmt(_) => "REVOKE",
        NodeEnum::GrantRoleStmt(grant) if grant.is_grant => "GRANT ROLE",
        NodeEnum::GrantRoleStmt(_) => "REVOKE ROLE",
        NodeEnum::AlterDefaultPrivilegesStmt(_) => "ALTER DEFAULT PRIVILEGES",
        NodeEnum::CreateRoleStmt(_) => "CREATE ROLE",
        NodeEnum::AlterRoleStmt(_) | NodeEnum::AlterRoleSetStmt(_) => "ALTER ROLE",
        NodeEnum::DropRoleStmt(_) => "DROP ROLE",
        NodeEnum::DropOwnedStmt(_) => "DROP OWNED",
        NodeEnum::ReassignOwnedStmt(_) => "REASSIGN OWNED",
        NodeEnum::CreatedbStmt(_) => "CREATE DATABASE",
        NodeEnum::AlterDatabaseStmt(_)
        | NodeEnum::AlterDatabaseRefreshCollStmt(_)
        | NodeEnum::AlterDatabaseSetStmt(_) => "ALTER DATABASE",
        NodeEnum::DropdbStmt(_) => "DROP DATABASE",
        NodeEnum::CreateTableSpaceStmt(_) => "CREATE TABLESPACE",
        NodeEnum::AlterTableSpaceOptionsStmt(_) => "ALTER TABLESPACE",
        NodeEnum::DropTableSpaceStmt(_) => "DROP TABLESPACE",
        NodeEnum::AlterSystemStmt(_) => "ALTER SYSTEM",
        _ => return None,
    })
}

fn foreign_and_replicated(node: &NodeEnum) -> Option<&'static str> {
    Some(match node {
        NodeEnum::CreateForeignTableStmt(_) => "CREATE FOREIGN TABLE",
        NodeEnum::ImportForeignSchemaStmt(_) => "IMPORT FOREIGN SCHEMA",
        NodeEnum::CreateFdwStmt(_) => "CREATE FOREIGN DATA WRAPPER",
        NodeEnum::AlterFdwStmt(_) => "ALTER FOREIGN DATA WRAPPER",
        NodeEnum::CreateForeignServerStmt(_) => "CREATE SERVER",
        NodeEnum::AlterForeignServerStmt(_) => "ALTER SERVER",
        NodeEnum::CreateUserMappingStmt(_) => "CREATE USER MAPPING",
        NodeEnum::AlterUserMappingStmt(_) => "ALTER USER MAPPING",
        NodeEnum::DropUserMappingStmt(_) => "DROP USER MAPPING",
        NodeEnum::CreatePublicationStmt(_) => "CREATE PUBLICATION",
        NodeEnum::AlterPublicationStmt(_) => "ALTER PUBLICATION",
        NodeEnum::CreateSubscriptionStmt(_) => "CREATE SUBSCRIPTION",
        NodeEnum::AlterSubscriptionStmt(_) => "ALTER SUBSCRIPTION",
        NodeEnum::DropSubscriptionStmt(_) => "DROP SUBSCRIPTION",
        _ => return None,
    })
}

fn sessions(node: &NodeEnum) -> Option<&'static str> {
    Some(match node {
        NodeEnum::TransactionStmt(transaction) => transaction_tag(transaction.kind),
        NodeEnum::VariableSetStmt(set) => {
            let reset = [VariableSetKind::VarReset as i32, VariableSetKind::VarResetAll as i32];
            if reset.contains(&set.kind) { "RESET" } else { "SET" }
        }
        NodeEnum::VariableShowStmt(_) => "SHOW",
        NodeEnum::DiscardStmt(discard) => match DiscardMode::try_from(discard.target) {
            Ok(DiscardMode::DiscardAll) => "DISCARD ALL",
            Ok(DiscardMode::DiscardPlans) => "DISCARD PLANS",
            Ok(DiscardMode::DiscardSequences) => "DISCARD SEQUENCES",
            Ok(DiscardMode::DiscardTemp) => "DISCARD TEMP",
            Ok(DiscardMode::Undefined) | Err(_) => UNKNOWN,
        },
        NodeEnum::ConstraintsSetStmt(_) => "SET CONSTRAINTS",
        NodeEnum::LockStmt(_) => "LOCK TABLE",
        NodeEnum::ListenStmt(_) => "LISTEN",
        NodeEnum::UnlistenStmt(_) => "UNLISTEN",
        NodeEnum::NotifyStmt(_) => "NOTIFY",
        NodeEnum::LoadStmt(_) => "LOAD",
        NodeEnum::ClusterStmt(_) => "CLUSTER",
        NodeEnum::VacuumStmt(vacuum) if vacuum.is_vacuumcmd => "VACUUM",
        NodeEnum::VacuumStmt(_) => "ANALYZE",
        NodeEnum::CheckPointStmt(_) => "CHECKPOINT",
        _ => return None,
    })
}

fn transaction_tag(kind: i32) -> &'static str {
    match TransactionStmtKind::try_from(kind) {
        Ok(TransactionStmtKind::TransStmtBegin) => "BEGIN",
        Ok(TransactionStmtKind::TransStmtStart) => "START TRANSACTION",
        Ok(TransactionStmtKind::TransStmtCommit) => "COMMIT",
        Ok(TransactionStmtKind::TransStmtRollback | TransactionStmtKind::TransStmtRollbackTo) => {
            "ROLLBACK"
        }
        Ok(TransactionStmtKind::TransStmtSavepoint) => "SAVEPOINT",
        Ok(TransactionStmtKind::TransStmtRelease) => "RELEASE",
        Ok(TransactionStmtKind::TransStmtPrepare) => "PREPARE TRANSACTION",
        Ok(TransactionStmtKind::TransStmtCommitPrepared) => "COMMIT PREPARED",
        Ok(TransactionStmtKind::TransStmtRollbackPrepared) => "ROLLBACK PREPARED",
        Ok(TransactionStmtKind::Undefined) | Err(_) => UNKNOWN,
    }
}

/// The tag of ALTER for a kind of object.
fn alter_tag(kind: i32) -> &'static str {
    let Ok(kind) = ObjectType::try_from(kind) else { return UNKNOWN };
    KINDS.iter().find(|(known, ..)| *known == kind).map_or(UNKNOWN, |(_, alter, _)| *alter)
}

/// The tag of DROP for a kind of object.
fn drop_tag(kind: i32) -> &'static str {
    let Ok(kind) = ObjectType::try_from(kind) else { return UNKNOWN };
    KINDS.iter().find(|(known, ..)| *known == kind).map_or(UNKNOWN, |(.., drop)| *drop)
}

/// The tag of a CREATE that is a list of definitions.
fn define_tag(kind: i32) -> &'static str {
    match ObjectType::try_from(kind) {
        Ok(ObjectType::ObjectAccessMethod) => "CREATE ACCESS METHOD",
        Ok(ObjectType::ObjectAggregate) => "CREATE AGGREGATE",
        Ok(ObjectType::ObjectCollation) => "CREATE COLLATION",
        Ok(ObjectType::ObjectOperator) => "CREATE OPERATOR",
        Ok(ObjectType::ObjectTsconfiguration) => "CREATE TEXT SEARCH CONFIGURATION",
        Ok(ObjectType::ObjectTsdictionary) => "CREATE TEXT SEARCH DICTIONARY",
        Ok(ObjectType::ObjectTsparser) => "CREATE TEXT SEARCH PARSER",
        Ok(ObjectType::ObjectTstemplate) => "CREATE TEXT SEARCH TEMPLATE",
        Ok(ObjectType::ObjectType) => "CREATE TYPE",
        _ => UNKNOWN,
    }
}

/// Kinds of objects with their tags of ALTER and DROP.
#[rustfmt::skip]
const KINDS: [(ObjectType, &str, &str); 44] = [
    (ObjectType::ObjectAccessMethod, "ALTER ACCESS METHOD", "DROP ACCESS METHOD"),
    (ObjectType::ObjectAggregate, "ALTER AGGREGATE", "DROP AGGREGATE"),
    (ObjectType::ObjectCast, "ALTER CAST", "DROP CAST"),
    (ObjectType::ObjectCollation, "ALTER COLLATION", "DROP COLLATION"),
    (ObjectType::ObjectConversion, "ALTER CONVERSION", "DROP CONVERSION"),
    (ObjectType::ObjectDatabase, "ALTER DATABASE", "DROP DATABASE"),
    (ObjectType::ObjectDomain, "ALTER DOMAIN", "DROP DOMAIN"),
    (ObjectType::ObjectEventTrigger, "ALTER EVENT TRIGGER", "DROP EVENT TRIGGER"),
    (ObjectType::ObjectExtension, "ALTER EXTENSION", "DROP EXTENSION"),
    (ObjectType::ObjectFdw, "ALTER FOREIGN DATA WRAPPER", "DROP FOREIGN DATA WRAPPER"),
    (ObjectType::ObjectForeignServer, "ALTER SERVER", "DROP SERVER"),
    (ObjectType::ObjectForeignTable, "ALTER FOREIGN TABLE", "DROP FOREIGN TABLE"),
    (ObjectType::ObjectFunction, "ALTER FUNCTION", "DROP FUNCTION"),
    (ObjectType::ObjectIndex, "ALTER INDEX", "DROP INDEX"),
    (ObjectType::ObjectLanguage, "ALTER LANGUAGE", "DROP LANGUAGE"),
    (ObjectType::ObjectLargeobject, "ALTER LARGE OBJECT", "DROP LARGE OBJECT"),
    (ObjectType::ObjectMatview, "ALTER MATERIALIZED VIEW", "DROP MATERIALIZED VIEW"),
    (ObjectType::ObjectOpclass, "ALTER OPERATOR CLASS", "DROP OPERATOR CLASS"),
    (ObjectType::ObjectOperator, "ALTER OPERATOR", "DROP OPERATOR"),
    (ObjectType::ObjectOpfamily, "ALTER OPERATOR FAMILY", "DROP OPERATOR FAMILY"),
    (ObjectType::ObjectPolicy, "ALTER POLICY", "DROP POLICY"),
    (ObjectType::ObjectProcedure, "ALTER PROCEDURE", "DROP PROCEDURE"),
    (ObjectType::ObjectPublication, "ALTER PUBLICATION", "DROP PUBLICATION"),
    (ObjectType::ObjectRole, "ALTER ROLE", "DROP ROLE"),
    (ObjectType::ObjectRoutine, "ALTER ROUTINE", "DROP ROUTINE"),
    (ObjectType::ObjectRule, "ALTER RULE", "DROP RULE"),
    (ObjectType::ObjectSchema, "ALTER SCHEMA", "DROP SCHEMA"),
    (ObjectType::ObjectSequence, "ALTER SEQUENCE", "DROP SEQUENCE"),
    (ObjectType::ObjectStatisticExt, "ALTER STATISTICS", "DROP STATISTICS"),
    (ObjectType::ObjectSubscription, "ALTER SUBSCRIPTION", "DROP SUBSCRIPTION"),
    (ObjectType::ObjectTable, "ALTER TABLE", "DROP TABLE"),
    (ObjectType::ObjectTablespace, "ALTER TABLESPACE", "DROP TABLESPACE"),
    (ObjectType::ObjectTransform, "ALTER TRANSFORM", "DROP TRANSFORM"),
    (ObjectType::ObjectTrigger, "ALTER TRIGGER", "DROP TRIGGER"),
    (ObjectType::ObjectTsconfiguration, "ALTER TEXT SEARCH CONFIGURATION", "DROP TEXT SEARCH CONFIGURATION"),
    (ObjectType::ObjectTsdictionary, "ALTER TEXT SEARCH DICTIONARY", "DROP TEXT SEARCH DICTIONARY"),
    (ObjectType::ObjectTsparser, "ALTER TEXT SEARCH PARSER", "DROP TEXT SEARCH PARSER"),
    (ObjectType::ObjectTstemplate, "ALTER TEXT SEARCH TEMPLATE", "DROP TEXT SEARCH TEMPLATE"),
    (ObjectType::ObjectType, "ALTER TYPE", "DROP TYPE"),
    (ObjectType::ObjectView, "ALTER VIEW", "DROP VIEW"),
    (ObjectType::ObjectAttribute, "ALTER TYPE", UNKNOWN),
    (ObjectType::ObjectDomconstraint, "ALTER DOMAIN", UNKNOWN),
    (ObjectType::ObjectColumn, "ALTER TABLE", UNKNOWN),
    (ObjectType::ObjectTabconstraint, "ALTER TABLE", UNKNOWN),
];
