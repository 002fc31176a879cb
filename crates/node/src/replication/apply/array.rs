//! A `text[]` in PostgreSQL's binary form (`array_send`), built element by element.

use anyhow::Result;

/// The OID of `text`, the same on every server.
const TEXT_OID: u32 = 25;

/// Where the number of elements stands.
const COUNT: std::ops::Range<usize> = 12..16;

/// One dimension of texts, which may be NULL.
pub(super) struct TextArray {
    bytes: Vec<u8>,
    elements: u32,
}

impl TextArray {
    /// No element yet.
    pub(super) fn new() -> Self {
        let mut bytes = Vec::with_capacity(512);
        // Dimensions, whether there may be NULLs, the type, the number of elements, the first subscript.
        for word in [1, 1, TEXT_OID, 0, 1] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        Self { bytes, elements: 0 }
    }

    /// Appends an element.
    ///
    /// # Errors
    /// It is longer than 4 GiB.
    pub(super) fn push(&mut self, element: Option<&[u8]>) -> Result<()> {
        match element {
            None => self.bytes.extend_from_slice(&(-1i32).to_be_bytes()),
            Some(text) => {
                self.bytes.extend_from_slice(&u32::try_from(text.len())?.to_be_bytes());
                self.bytes.extend_from_slice(text);
            }
        }
        self.elements += 1;
        Ok(())
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
