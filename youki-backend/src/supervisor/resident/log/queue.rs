//! What a non-blocking log takes in, and what it drops.

use std::io;

use super::files::payload_bytes;
use super::notice;
use super::ring::Ring;
use crate::supervisor::resident::output::LONGEST_LINE_BYTES;

/// Lines on their way to the writer.
#[derive(Debug)]
pub(super) struct Queue {
    pub ring: Ring,
    limit: usize,
    dropped: u64,
}

impl Queue {
    /// One that holds `limit` bytes, or, where that is less than a line, one line.
    pub fn new(limit: u64) -> io::Result<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(Self { ring: Ring::new(limit.max(LONGEST_LINE_BYTES))?, limit, dropped: 0 })
    }

    /// Takes as many of these whole lines as there is room for; returns the rest. Of what was dropped it speaks first.
    pub fn take_in<'a>(&mut self, lines: &'a [u8]) -> &'a [u8] {
        if !self.say_dropped() {
            return lines;
        }
        let fitting = self.fitting(lines);
        let (now, later) = lines.split_at(fitting);
        self.ring.put(now);
        later
    }

    /// Gives these lines up.
    pub fn drop_lines(&mut self, lines: &[u8]) {
        self.dropped += payload_bytes(lines);
    }

    /// Says what was dropped, if anything was. False while there is no room for that.
    pub fn say_dropped(&mut self) -> bool {
        if self.dropped == 0 {
            return true;
        }
        let notice = notice(self.dropped);
        let fits = self.fitting(notice.as_bytes()) > 0;
        if fits {
            self.ring.put(notice.as_bytes());
            self.dropped = 0;
        }
        fits
    }

    /// Bytes that were dropped, and not spoken of yet.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether there is nothing in it, and nothing to be said.
    pub fn is_settled(&self) -> bool {
        self.dropped == 0 && self.ring.len() == 0
    }

    /// Bytes of whole lines for which there is room: of those that an empty queue would refuse, one.
    fn fitting(&self, lines: &[u8]) -> usize {
        let used = self.ring.len();
        let room = self.limit.saturating_sub(used);
        let end_of = |end: Option<usize>| end.map_or(0, |end| end + 1);
        if lines.len() <= room {
            return lines.len();
        }
        match end_of(memchr::memrchr(b'\n', &lines[..room])) {
            0 if used == 0 => end_of(memchr::memchr(b'\n', lines)).min(self.ring.capacity()),
            fitting => fitting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Vec<u8> {
        format!("2026-11-25T03:21:40.000000000Z stdout F {text}\n").into_bytes()
    }

    /// What is in it, without times; it is empty then.
    fn drained(queue: &Queue) -> Vec<String> {
        let text = String::from_utf8_lossy(queue.ring.contents()).into_owned();
        queue.ring.take(text.len());
        text.lines().map(|line| line[38..].to_owned()).collect()
    }

    #[test]
    fn what_there_is_no_room_for_is_dropped_by_whole_lines_and_said_once_there_is() {
        let mut queue = Queue::new(3 * line("0000").len() as u64 + 20).unwrap();
        let many: Vec<u8> = ["0000", "1111", "2222", "3333", "4444"].iter().flat_map(|text| line(text)).collect();
        let rest = queue.take_in(&many).to_vec();
        assert_eq!(rest.len(), 2 * line("0000").len());
        queue.drop_lines(&rest);
        // Room for a part of the notice is none, and what comes meanwhile must not come before it.
        let more = line("5");
        assert_eq!(queue.take_in(&more), more);
        queue.drop_lines(&more);
        assert_eq!(drained(&queue), ["F 0000", "F 1111", "F 2222"]);
        assert!(!queue.is_settled());
        assert_eq!(queue.take_in(&line("6")), b"");
        assert_eq!(drained(&queue), ["F:dropped=12 ", "F 6"]);
        assert!(queue.is_settled());
    }

    #[test]
    fn a_line_longer_than_the_limit_goes_through_when_nothing_is_before_it() {
        let mut queue = Queue::new(10).unwrap();
        let long = line(&"x".repeat(200 << 10));
        let two = [long.clone(), line("next")].concat();
        assert_eq!(queue.take_in(&two), line("next"));
        assert_eq!(queue.take_in(&line("next")), line("next"));
        assert_eq!(drained(&queue)[0].len(), 2 + (200 << 10));
        assert_eq!(queue.take_in(&line("next")), b"");
    }
}
