//! What an attached reader has not taken yet of one stream.
//!
//! Of a container that waits for its log everything is kept for it, and its stream is not read meanwhile. One that does not
//! wait is read on: what its reader has no room for is left out, by whole lines, and the reader is told how much.

/// Most that is kept for a reader that is not waited for, beside what its pipe holds.
const KEPT_BYTES: usize = 256 << 10;

/// Output on its way to a reader.
#[derive(Debug)]
pub(super) struct Backlog {
    pub pending: Vec<u8>,
    limit: Option<usize>,
    /// Left out since the gap began; 0 outside of one.
    missing: u64,
}

impl Backlog {
    /// That of a reader which is `waited` for.
    pub fn new(waited: bool) -> Self {
        Self { pending: Vec::new(), limit: (!waited).then_some(KEPT_BYTES), missing: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes what there is room for. `Some` tells of a gap that has ended with this, before it: so many bytes are missing.
    pub fn offer(&mut self, mut bytes: &[u8]) -> Option<u64> {
        let Some(limit) = self.limit else {
            self.pending.extend_from_slice(bytes);
            return None;
        };
        let mut gap = None;
        if self.missing > 0 {
            // It ends with a line, once all from before it is taken.
            let end = memchr::memchr(b'\n', bytes).filter(|_| self.pending.is_empty());
            let (left_out, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            self.missing += left_out.len() as u64;
            end?;
            gap = Some(std::mem::take(&mut self.missing));
            bytes = rest;
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() > limit {
            // A line longer than that is cut.
            let whole = memchr::memrchr(b'\n', &self.pending[..limit]).map_or(limit, |end| end + 1);
            self.missing = (self.pending.len() - whole) as u64;
            self.pending.truncate(whole);
        }
        gap
    }

    /// No more will come. `Some` as above.
    pub fn end(&mut self) -> Option<u64> {
        (self.missing > 0).then(|| std::mem::take(&mut self.missing))
    }

    /// Tells the reader, on this stream, what it misses; that is no part of the output.
    pub fn tell(&mut self, missing: u64) {
        let text = format!("berth: {missing} bytes of output are missing here: they were not taken in time\r\n");
        self.pending.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_waited_for_gets_everything() {
        let mut backlog = Backlog::new(true);
        for _ in 0..100 {
            assert_eq!(backlog.offer(&vec![b'x'; KEPT_BYTES / 10]), None);
        }
        assert_eq!((backlog.pending.len(), backlog.end()), (KEPT_BYTES / 10 * 100, None));
    }

    #[test]
    fn who_is_not_misses_whole_lines_and_is_told_how_much() {
        let mut backlog = Backlog::new(false);
        let mut offered = 0;
        let mut offer = |backlog: &mut Backlog, text: &str| {
            offered += text.len() as u64;
            backlog.offer(text.as_bytes())
        };
        let line = format!("{}\n", "x".repeat(999));
        assert_eq!(offer(&mut backlog, &line.repeat(262)), None);
        let kept = backlog.pending.clone();
        assert!(kept.len() == 262_000 && kept.ends_with(b"\n"));
        assert_eq!(offer(&mut backlog, "half of "), None);
        assert_eq!(offer(&mut backlog, &line), None);
        assert!(backlog.pending == kept, "a part of a line is left");
        // Not before everything is taken, and not in the middle of a line.
        backlog.pending.drain(..1000);
        assert_eq!(offer(&mut backlog, "\nno line before the gap's end\n"), None);
        backlog.pending.clear();
        assert_eq!(offer(&mut backlog, "in the middle"), None);
        let gap = offer(&mut backlog, " of a line\nwhole again\n");
        assert_eq!(backlog.pending, b"whole again\n");
        assert_eq!(gap, Some(offered - kept.len() as u64 - backlog.pending.len() as u64));
        assert_eq!(backlog.end(), None);
        // A gap that nothing follows.
        assert_eq!(backlog.offer(&vec![b'y'; KEPT_BYTES]), None);
        let all = backlog.pending.len();
        assert_eq!((backlog.end(), backlog.end()), (Some((12 + KEPT_BYTES - all) as u64), None));
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut backlog = Backlog::new(false);
        assert_eq!(backlog.offer(&vec![b'x'; KEPT_BYTES + 5]), None);
        assert_eq!((backlog.pending.len(), backlog.end()), (KEPT_BYTES, Some(5)));
    }
}
