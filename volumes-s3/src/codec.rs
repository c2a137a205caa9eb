//! Integers and byte strings as the manifest writes them.

use crate::error::{Error, Result};

/// Appends an unsigned integer, seven bits a byte, lowest first.
pub(crate) fn put_uint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed integer: zigzag, then as an unsigned one.
pub(crate) fn put_int(out: &mut Vec<u8>, value: i64) {
    put_uint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the functions above wrote. Every read is checked against what is left.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    what: &'a str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`; errors call them `what`.
    pub(crate) fn new(what: &'a str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn error(&self, detail: &str) -> Error {
        Error::corrupt(self.what, detail)
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else { return Err(self.error("ends early")) };
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn uint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("an integer above 64 bits"))
    }

    pub(crate) fn uint32(&mut self) -> Result<u32> {
        let value = self.uint()?;
        u32::try_from(value).map_err(|_| self.error("an integer above 32 bits"))
    }

    pub(crate) fn int(&mut self) -> Result<i64> {
        let value = self.uint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A count of things that take at least a byte each: never more than there are bytes.
    pub(crate) fn count(&mut self) -> Result<usize> {
        let count = self.uint()?;
        if count > self.rest.len() as u64 {
            return Err(self.error("a count above what is there"));
        }
        Ok(count as usize)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.count()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_come_back(unsigned: u64, signed: i64, bytes: Vec<u8>) {
            let mut out = Vec::new();
            put_uint(&mut out, unsigned);
            put_int(&mut out, signed);
            put_bytes(&mut out, &bytes);
            let mut reader = Reader::new("test", &out);
            prop_assert_eq!(reader.uint().unwrap(), unsigned);
            prop_assert_eq!(reader.int().unwrap(), signed);
            prop_assert_eq!(reader.bytes().unwrap(), &bytes[..]);
            prop_assert!(reader.is_empty());
        }
    }

    #[test]
    fn a_short_or_endless_number_is_an_error() {
        for bytes in [&[][..], &[0x80], &[0xff; 10], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02]] {
            assert!(Reader::new("test", bytes).uint().is_err());
        }
        assert!(Reader::new("test", &[200, 1]).bytes().is_err());
    }
}
