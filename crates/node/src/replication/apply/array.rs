//! Arrays in PostgreSQL's binary form (`array_send`), built element by element from values in text form.

use anyhow::{Result, bail};
use synapsedb_core::change::Value;

use super::element::Element;

/// Where the number of elements stands.
const COUNT: std::ops::Range<usize> = 12..16;

/// One dimension of elements of one type, which may be NULL.
pub(super) struct Array {
    element: Element,
    bytes: Vec<u8>,
    elements: u32,
    /// Where the last element begins.
    last: usize,
}

impl Array {
    /// No element yet.
    pub(super) fn new(element: Element) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        // Dimensions, whether there may be NULLs, the type, the number of elements, the first subscript.
        for word in [1, 1, element.oid(), 0, 1] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        Self { element, last: bytes.len(), bytes, elements: 0 }
    }

    /// Appends a value in text form; answers whether it could be read as an element.
    ///
    /// # Errors
    /// It is not in text form, or longer than 4 GiB.
    pub(super) fn push(&mut self, value: Value<'_>) -> Result<bool> {
        let start = self.bytes.len();
        match value {
            Value::Null => self.bytes.extend_from_slice(&(-1i32).to_be_bytes()),
            Value::Text(text) => {
                self.bytes.extend_from_slice(&[0; 4]);
                if !self.element.encode(text, &mut self.bytes) {
                    self.bytes.truncate(start);
                    return Ok(false);
                }
                let length = u32::try_from(self.bytes.len() - start - 4)?;
                self.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
            }
            Value::Unchanged | Value::Binary(_) => bail!("a value of a row is not in text form"),
        }
        (self.last, self.elements) = (start, self.elements + 1);
        Ok(true)
    }

    /// Appends an element of eight bytes that is in binary form already.
    pub(super) fn push_binary(&mut self, element: &[u8; 8]) {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&8u32.to_be_bytes());
        self.bytes.extend_from_slice(element);
        self.elements += 1;
    }

    /// Takes back what was appended last.
    pub(super) fn pop(&mut self) {
        self.bytes.truncate(self.last);
        self.elements -= 1;
    }

    /// What it takes so far.
    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The array as a binary parameter.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes[COUNT].copy_from_slice(&self.elements.to_be_bytes());
        self.bytes
    }
}
