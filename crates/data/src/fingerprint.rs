//! A short mark of what a data set holds, by which a run knows its images again.

/// FNV-1a, 64 bits: the same on every machine and in every version, which the standard hasher does not promise.
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    /// The mark of a set of `len` images; `kind` keeps sets of different kinds apart.
    pub(crate) fn new(kind: &str, len: usize) -> Self {
        let mut mark = Self(0xcbf2_9ce4_8422_2325);
        mark.bytes(kind.as_bytes());
        mark.number(len as u64);
        mark
    }

    /// Adds bytes and their number, so that two fields never run into one another.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        bytes.iter().for_each(|&byte| self.byte(byte));
    }

    pub(crate) fn number(&mut self, value: u64) {
        value.to_le_bytes().into_iter().for_each(|byte| self.byte(byte));
    }

    fn byte(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0
    }
}
