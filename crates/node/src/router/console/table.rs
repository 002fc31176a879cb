//! Rows as the protocol sends them: descriptions and fields, in text or binary.

use bytes::{BufMut as _, BytesMut};

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int4,
    Int8,
}

impl Kind {
    fn oid(self) -> u32 {
        match self {
            Self::Text => 25,
            Self::Int4 => 23,
            Self::Int8 => 20,
        }
    }

    fn length(self) -> i16 {
        match self {
            Self::Text => -1,
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }
}

/// Name and type.
pub(super) type Column = (&'static str, Kind);

/// A value in text; `None` for NULL.
pub(super) type Field = Option<String>;

/// A text.
pub(super) fn text(value: impl Into<String>) -> Field {
    Some(value.into())
}

/// A number.
pub(super) fn number(value: impl ToString) -> Field {
    Some(value.to_string())
}

/// What a SHOW answers.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Vec<Field>>,
}

impl Table {
    pub(super) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(super) fn push(&mut self, row: Vec<Field>) {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// Appends a RowDescription.
    pub(super) fn describe(&self, formats: &Formats, out: &mut BytesMut) {
        message(out, b'T', |out| {
            out.put_u16(self.columns.len() as u16);
            for (place, (name, kind)) in self.columns.iter().enumerate() {
                out.put_slice(name.as_bytes());
                out.put_u8(0);
                out.put_u32(0);
                out.put_u16(0);
                out.put_u32(kind.oid());
                out.put_i16(kind.length());
                out.put_i32(-1);
                out.put_u16(u16::from(formats.is_binary(place)));
            }
        });
    }

    /// Appends a DataRow for each row.
    pub(super) fn put_rows(&self, formats: &Formats, out: &mut BytesMut) {
        for row in &self.rows {
            message(out, b'D', |out| {
                out.put_u16(row.len() as u16);
                for (place, field) in row.iter().enumerate() {
                    let kind = self.columns.get(place).map_or(Kind::Text, |(_, kind)| *kind);
                    put_field(field.as_deref(), kind, formats.is_binary(place), out);
                }
            });
        }
    }
}

fn put_field(field: Option<&str>, kind: Kind, binary: bool, out: &mut BytesMut) {
    let Some(field) = field else { return out.put_i32(-1) };
    match (kind, binary) {
        (Kind::Int4, true) => {
            out.put_i32(4);
            // A count that does not fit is shown as the largest that does.
            out.put_i32(field.parse::<i64>().unwrap_or(0).min(i64::from(i32::MAX)) as i32);
        }
        (Kind::Int8, true) => {
            out.put_i32(8);
            out.put_i64(field.parse().unwrap_or(i64::MAX));
        }
        (Kind::Text, _) | (Kind::Int4 | Kind::Int8, false) => {
            out.put_i32(field.len() as i32);
            out.put_slice(field.as_bytes());
        }
    }
}

/// The formats that a Bind asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Formats(Vec<u16>);

impl Formats {
    pub(super) fn new(codes: Vec<u16>) -> Self {
        Self(codes)
    }

    fn is_binary(&self, place: usize) -> bool {
        let code = match &self.0[..] {
            [] => 0,
            [all] => *all,
            each => each.get(place).copied().unwrap_or(0),
        };
        code == 1
    }
}

/// Appends a message whose body is written by `body`.
pub(super) fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = ((out.len() - start) as u32).to_be_bytes();
    out[start..start + 4].copy_from_slice(&length);
}

/// Appends a CommandComplete.
pub(super) fn complete(out: &mut BytesMut, tag: &str) {
    message(out, b'C', |out| {
        out.put_slice(tag.as_bytes());
        out.put_u8(0);
    });
}
