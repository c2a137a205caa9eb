//! Cuts the data of files into chunks.
//!
//! A run of data up to [`WHOLE_LIMIT`] is one chunk. A longer one is cut where its content says so (FastCDC), so that
//! an insertion moves no boundary but those near it.

use std::io::{self, Read};

use fastcdc::v2020::FastCDC;

/// Runs up to this are one chunk: cutting small files finds next to nothing twice, and costs an entry per chunk.
pub(crate) const WHOLE_LIMIT: u64 = 1 << 20;
/// Shortest chunk of a longer run (but for its last one).
const MIN: usize = 256 << 10;
/// Length aimed at.
const AVERAGE: usize = 1 << 20;
/// Longest chunk.
const MAX: usize = crate::pack::CHUNK_LIMIT;
/// Read ahead of the cut; several chunks, so that what is left is moved to the front seldom.
const BUFFER: usize = 2 * MAX;

/// Cuts what readers give; keeps its buffer.
#[derive(Debug, Default)]
pub(crate) struct Chunker {
    buffer: Vec<u8>,
}

impl Chunker {
    /// Gives `each` the chunks of a run of `length` bytes from `reader`, in order. Fewer bytes than that are no error
    /// (the file shrank); the number of bytes read is returned.
    pub(crate) fn cut<E: From<io::Error>>(
        &mut self,
        mut reader: impl Read,
        length: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        if length == 0 {
            return Ok(0);
        }
        let whole = length <= WHOLE_LIMIT;
        let capacity = if whole { length as usize } else { BUFFER };
        if self.buffer.len() < capacity {
            self.buffer.resize(capacity, 0);
        }
        let buffer = &mut self.buffer[..capacity];
        let (mut start, mut end, mut read) = (0, 0, 0);
        loop {
            if end - start < MAX && read < length {
                buffer.copy_within(start..end, 0);
                (start, end) = (0, end - start);
                let wanted = (length - read).min((buffer.len() - end) as u64) as usize;
                let got = fill(&mut reader, &mut buffer[end..end + wanted])?;
                end += got;
                read += got as u64;
                if got < wanted {
                    // The end came early: what there is is cut as the rest.
                    return Self::rest(&buffer[start..end], whole, each).map(|()| read);
                }
            }
            if read == length {
                return Self::rest(&buffer[start..end], whole, each).map(|()| read);
            }
            let chunk = FastCDC::new(&buffer[start..end], MIN, AVERAGE, MAX).next();
            let size = chunk.map_or(end - start, |chunk| chunk.length);
            each(&buffer[start..start + size])?;
            start += size;
        }
    }

    fn rest<E>(bytes: &[u8], whole: bool, mut each: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match bytes {
            [] => Ok(()),
            _ if whole => each(bytes),
            _ => FastCDC::new(bytes, MIN, AVERAGE, MAX)
                .try_for_each(|chunk| each(&bytes[chunk.offset..chunk.offset + chunk.length])),
        }
    }
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        let read = Chunker::default().cut(bytes, bytes.len() as u64, |chunk| {
            chunks.push(chunk.to_vec());
            Ok::<_, io::Error>(())
        });
        assert_eq!(read.unwrap(), bytes.len() as u64);
        chunks
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        use rand::{RngCore, SeedableRng};
        let mut bytes = vec![0; length];
        rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn chunks_are_the_bytes_within_the_limits() {
        for length in [0, 1, WHOLE_LIMIT as usize, WHOLE_LIMIT as usize + 1, BUFFER, 40 << 20] {
            let bytes = noise(length, 1);
            let chunks = cut(&bytes);
            assert_eq!(chunks.concat(), bytes);
            assert!(chunks.iter().all(|chunk| chunk.len() <= MAX));
            assert!(length as u64 > WHOLE_LIMIT || chunks.len() <= 1);
        }
    }

    #[test]
    fn the_buffer_leaves_no_mark_in_the_cuts() {
        let bytes = noise(40 << 20, 2);
        let at_once: Vec<_> = FastCDC::new(&bytes, MIN, AVERAGE, MAX).map(|chunk| chunk.length).collect();
        assert_eq!(cut(&bytes).iter().map(Vec::len).collect::<Vec<_>>(), at_once);
    }

    #[test]
    fn an_insertion_moves_only_the_cuts_near_it() {
        let before = noise(32 << 20, 3);
        let mut after = before.clone();
        after.splice(5_000_000..5_000_000, [1, 2, 3]);
        let (before, after) = (cut(&before), cut(&after));
        let new = after.iter().filter(|chunk| !before.contains(chunk)).count();
        assert!(new <= 3, "{new} of {} chunks are new", after.len());
    }
}
