//! Bytes that a PostgreSQL 15 server sent, and bytes that none would send.

#![allow(clippy::unwrap_used)]

use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn golden(hex: &str, expected: Expect) {
    let bytes = bytes(hex);
    let mut text = format!("{:?}", decode(&bytes).unwrap());
    for part in
        ["Column {", "new:", "prefix:", "cascade:", "old:", "end_lsn:", "name: \"p", "identity:"]
    {
        text = text.replace(&format!(" {part}"), &format!("\n{part}"));
    }
    expected.assert_eq(&text);
    for cut in 0..bytes.len() {
        assert!(decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    let longer = [&bytes[..], b"\0"].concat();
    assert!(decode(&longer).is_err());
}

#[test]
fn a_begin() {
    golden(
        "420000000001543f00000303e7ab54b02f000002db",
        expect![
            "Begin { commit_lsn: 0/1543F00, commit_time: Timestamp(848718476914735), xid: 731 }"
        ],
    );
}

#[test]
fn a_commit() {
    golden(
        "43000000000001543f000000000001543f30000303e7ab54b02f",
        expect![[r#"
            Commit { commit_lsn: 0/1543F00,
            end_lsn: 0/1543F30, commit_time: Timestamp(848718476914735) }"#]],
    );
}

#[test]
fn an_origin() {
    golden(
        "4f0000000000abcdef706565725f3200",
        expect![[r#"
            Origin { lsn: 0/ABCDEF,
            name: "peer_2" }"#]],
    );
}

#[test]
fn a_type() {
    golden(
        "59000040017075626c6963006d6f6f6400",
        expect![[r#"Type { id: 16385, schema: "public", name: "mood" }"#]],
    );
}

#[test]
fn a_relation() {
    golden(
        "52000040057075626c69630074006400040169640000000017ffffffff006e616d650000000019ff \
         ffffff006665656c696e670000004001ffffffff006269670000000019ffffffff",
        expect![[r#"
            Relation(Relation { id: 16389, schema: "public", name: "t",
            identity: Default, columns: [Column { name: "id", in_key: true, type_oid: 23, type_modifier: -1 },
            Column { name: "name", in_key: false, type_oid: 25, type_modifier: -1 },
            Column { name: "feeling", in_key: false, type_oid: 16385, type_modifier: -1 },
            Column { name: "big", in_key: false, type_oid: 25, type_modifier: -1 }] })"#]],
    );
}

#[test]
fn a_full_relation() {
    golden(
        "520000400c7075626c696300660066000201610000000017ffffffff01620000000019ffffffff",
        expect![[r#"
            Relation(Relation { id: 16396, schema: "public", name: "f",
            identity: Full, columns: [Column { name: "a", in_key: true, type_oid: 23, type_modifier: -1 },
            Column { name: "b", in_key: true, type_oid: 25, type_modifier: -1 }] })"#]],
    );
}

#[test]
fn an_insert() {
    golden(
        "490000400c4e000274000000013174000000036f6c64",
        expect![[r#"
            Change(Insert { relation: 16396,
            new: [Text([49]), Text([111, 108, 100])] })"#]],
    );
}

#[test]
fn an_update_with_unchanged_toast() {
    golden(
        "55000040054e00047400000001317400000001626e75",
        expect![[r#"
            Change(Update { relation: 16389,
            old: None,
            new: [Text([49]), Text([98]), Null, Unchanged] })"#]],
    );
}

#[test]
fn an_update_of_the_key() {
    golden(
        "55000040054b00047400000001316e6e6e4e00047400000001327400000001626e75",
        expect![[r#"
            Change(Update { relation: 16389,
            old: Some(Key([Text([49]), Null, Null, Null])),
            new: [Text([50]), Text([98]), Null, Unchanged] })"#]],
    );
}

#[test]
fn an_update_of_a_full_row() {
    golden(
        "550000400c4f000274000000013174000000036f6c644e00027400000001316e",
        expect![[r#"
            Change(Update { relation: 16396,
            old: Some(Full([Text([49]), Text([111, 108, 100])])),
            new: [Text([49]), Null] })"#]],
    );
}

#[test]
fn a_delete() {
    golden(
        "44000040054b00047400000001326e6e6e",
        expect![[r#"
            Change(Delete { relation: 16389,
            old: Key([Text([50]), Null, Null, Null]) })"#]],
    );
}

#[test]
fn a_delete_of_a_full_row() {
    golden(
        "440000400c4f00027400000001316e",
        expect![[r#"
            Change(Delete { relation: 16396,
            old: Full([Text([49]), Null]) })"#]],
    );
}

#[test]
fn a_truncate() {
    golden(
        "540000000203000040050000400c",
        expect![[r#"
            Change(Truncate { relations: [16389, 16396],
            cascade: true, restart_identity: true })"#]],
    );
}

#[test]
fn a_transactional_message() {
    golden(
        "4d01000000000154599064646c000000000568656c6c6f",
        expect![[r#"
            LogicalMessage { transactional: true, lsn: 0/1545990,
            prefix: "ddl", content: [104, 101, 108, 108, 111] }"#]],
    );
}

#[test]
fn a_free_message() {
    golden(
        "4d000000000001545a006e6f746500000000036e6f77",
        expect![[r#"
            LogicalMessage { transactional: false, lsn: 0/1545A00,
            prefix: "note", content: [110, 111, 119] }"#]],
    );
}

fn value() -> impl Strategy<Value = Value<'static>> {
    let content = prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| &*bytes.leak());
    prop_oneof![
        Just(Value::Null),
        Just(Value::Unchanged),
        content.clone().prop_map(Value::Text),
        content.prop_map(Value::Binary),
    ]
}

fn put_tuple(message: &mut Vec<u8>, kind: u8, tuple: &[Value<'_>]) {
    message.push(kind);
    message.extend((tuple.len() as u16).to_be_bytes());
    for value in tuple {
        match value {
            Value::Null => message.push(b'n'),
            Value::Unchanged => message.push(b'u'),
            Value::Text(bytes) | Value::Binary(bytes) => {
                let text = matches!(value, Value::Text(_));
                message.push(if text { b't' } else { b'b' });
                message.extend((bytes.len() as u32).to_be_bytes());
                message.extend(*bytes);
            }
        }
    }
}

proptest! {
    #[test]
    fn nothing_panics(message: Vec<u8>, tag in "[BCORYIUDTM]") {
        let _ = (decode(&message), peek(&message));
        let tagged = [tag.as_bytes(), &message].concat();
        let _ = (decode(&tagged), peek(&tagged));
        prop_assert_eq!(check(&tagged).is_ok(), decode(&tagged).is_ok());
    }

    #[test]
    fn a_check_says_what_decoding_would(
        columns in prop::collection::vec("[a-z\u{e9}]{0,4}", 0..5), at: prop::sample::Index, byte: u8, cut: bool,
    ) {
        let mut message = b"R\x00\x00\x40\x01s\x00t\x00d".to_vec();
        message.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
        for column in &columns {
            message.push(1);
            message.extend(column.as_bytes());
            message.extend([0, 0, 0, 0, 23, 255, 255, 255, 255]);
        }
        prop_assert!(check(&message).is_ok());
        let at = at.index(message.len());
        if cut { message.truncate(at) } else { message[at] = byte }
        prop_assert_eq!(check(&message).is_ok(), decode(&message).is_ok());
    }

    #[test]
    fn updates_round_trip(
        relation: u32,
        old in prop::option::of((any::<bool>(), prop::collection::vec(value(), 0..9))),
        new in prop::collection::vec(value(), 0..9),
    ) {
        let mut message = [&b"U"[..], &relation.to_be_bytes()].concat();
        if let Some((full, tuple)) = &old {
            put_tuple(&mut message, if *full { b'O' } else { b'K' }, tuple);
        }
        put_tuple(&mut message, b'N', &new);
        let old = old.map(|(full, old)| if full { OldTuple::Full(old) } else { OldTuple::Key(old) });
        assert_eq!(peek(&message), Ok(Peek::Update(relation)));
        assert_eq!(decode(&message), Ok(Message::Change(Change::Update { relation, old, new })));
    }

    #[test]
    fn truncates_round_trip(relations: Vec<u32>, cascade: bool, restart_identity: bool) {
        let mut message = [&b"T"[..], &(relations.len() as u32).to_be_bytes()].concat();
        message.push(u8::from(cascade) | u8::from(restart_identity) << 1);
        relations.iter().for_each(|id| message.extend(id.to_be_bytes()));
        let Ok(Peek::Truncate(ids)) = peek(&message) else { panic!("{message:?}") };
        assert_eq!(ids.collect::<Vec<_>>(), relations);
        let change = Change::Truncate { relations, cascade, restart_identity };
        assert_eq!(decode(&message), Ok(Message::Change(change)));
    }
}

/// A few bytes that promise four billion relations, or 65535 values, get no memory for them.
#[test]
fn promises_are_not_believed() {
    assert!(decode(&bytes("54 ffffffff 00")).is_err());
    assert!(decode(&bytes("49 00000001 4e ffff 6e")).is_err());
    assert!(decode(&bytes("49 00000001 4e 0001 74 ffffffff")).is_err());
}
