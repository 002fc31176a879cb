//! Passes bytes on with a few of them replaced: as a slice of what was read when none is, as a copy otherwise.

/// The bytes that go on, in the making.
pub(super) struct Splice<'a> {
    input: &'a [u8],
    /// What of the input is not in `output` yet begins here.
    from: usize,
    output: &'a mut Vec<u8>,
}

impl<'a> Splice<'a> {
    /// `output` must be empty; it is used only when something is replaced.
    pub(super) fn new(input: &'a [u8], output: &'a mut Vec<u8>) -> Self {
        Self { input, from: 0, output }
    }

    /// Lets the input up to `at` go on, and drops what is between there and `until`.
    pub(super) fn drop(&mut self, at: usize, until: usize) {
        self.output.extend_from_slice(&self.input[self.from..at]);
        self.from = until;
    }

    /// What was put in place of what was dropped last goes here.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        self.output
    }

    /// Lets the input up to `at` go on, so that what is put out next follows it.
    pub(super) fn output_at(&mut self, at: usize) -> &mut Vec<u8> {
        self.drop(at, at);
        self.output
    }

    /// All that goes on of the input up to `end`.
    pub(super) fn finish(self, end: usize) -> &'a [u8] {
        if self.from == 0 && self.output.is_empty() {
            return &self.input[..end];
        }
        self.output.extend_from_slice(&self.input[self.from.min(end)..end]);
        self.output
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_copied_when_nothing_is_replaced() {
        let (input, mut output) = (b"abcdef".as_slice(), Vec::new());
        let spliced = Splice::new(input, &mut output).finish(4);
        assert_eq!(spliced, b"abcd");
        assert_eq!(spliced.as_ptr(), input.as_ptr());
    }

    #[test]
    fn parts_are_dropped_and_put_in() {
        let mut output = Vec::new();
        let mut splice = Splice::new(b"abcdef", &mut output);
        splice.drop(0, 1);
        splice.output_at(2).extend_from_slice(b"-");
        splice.drop(3, 5);
        splice.output().extend_from_slice(b"+");
        assert_eq!(splice.finish(6), b"b-c+f");
        let mut output = Vec::new();
        let mut splice = Splice::new(b"ab", &mut output);
        splice.drop(0, 2);
        assert_eq!(splice.finish(2), b"");
    }
}
