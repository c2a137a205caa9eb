//! Parsers of the kernel's formats: text in, numbers out, no I/O. What is not as expected is `None` or left out.

use std::collections::BTreeMap;

use runtime_core::stats::{InterfaceStats, IoStats, Pressure};

/// A file that holds one number.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A limit of v2, or of v1's pids: `max` is none.
pub(super) fn limit(text: &str) -> Option<u64> {
    number(text)
}

/// A memory limit of v1: "none" is the largest number of whole pages in a signed 64-bit number.
pub(super) fn limit_v1(text: &str) -> Option<u64> {
    const NO_LIMIT_FROM: u64 = (i64::MAX as u64) & !0xf_ffff;
    number(text).filter(|bytes| *bytes < NO_LIMIT_FROM)
}

/// One number of a flat keyed file, `key number` a line.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// v1 `blkio.throttle.*`: bytes or operations read and written over all devices (`8:0 Read 4096`).
pub(super) fn blkio(text: &str) -> (u64, u64) {
    let (mut read, mut written) = (0u64, 0u64);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(_device), Some(operation), Some(count)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let count = count.parse().unwrap_or(0);
        match operation {
            "Read" => read = read.saturating_add(count),
            "Write" => written = written.saturating_add(count),
            _ => {}
        }
    }
    (read, written)
}

/// v2 `io.stat` over all devices (`8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`).
pub(super) fn io_stat(text: &str) -> IoStats {
    let (mut read_bytes, mut write_bytes, mut read_ops, mut write_ops) = (0u64, 0u64, 0u64, 0u64);
    for (key, value) in text.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
        let sum = match key {
            "rbytes" => &mut read_bytes,
            "wbytes" => &mut write_bytes,
            "rios" => &mut read_ops,
            "wios" => &mut write_ops,
            _ => continue,
        };
        *sum = sum.saturating_add(value.parse().unwrap_or(0));
    }
    IoStats {
        read_bytes: Some(read_bytes),
        write_bytes: Some(write_bytes),
        read_ops: Some(read_ops),
        write_ops: Some(write_ops),
    }
}

/// `*.pressure` (Documentation/accounting/psi.rst). The CPU's has no `full` line on older kernels.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    let mut seen = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next();
        let mut avg = [0f64; 3];
        let mut total = 0;
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => avg[0] = value.parse().ok()?,
                "avg60" => avg[1] = value.parse().ok()?,
                "avg300" => avg[2] = value.parse().ok()?,
                "total" => total = value.parse().ok()?,
                _ => {}
            }
        }
        match kind {
            Some("some") => {
                seen = true;
                [pressure.some_avg10, pressure.some_avg60, pressure.some_avg300] = avg;
                pressure.some_total_usec = total;
            }
            Some("full") => {
                [pressure.full_avg10, pressure.full_avg60, pressure.full_avg300] = avg.map(Some);
                pressure.full_total_usec = Some(total);
            }
            _ => {}
        }
    }
    seen.then_some(pressure)
}

/// `/proc/<pid>/net/dev`, every interface but the loopback.
pub(super) fn interfaces(text: &str) -> BTreeMap<String, InterfaceStats> {
    text.lines().skip(2).filter_map(interface).filter(|(name, _)| name != "lo").collect()
}

/// `  eth0: rx_bytes packets errs drop fifo frame compressed multicast tx_bytes packets errs …`
fn interface(line: &str) -> Option<(String, InterfaceStats)> {
    let (name, numbers) = line.rsplit_once(':')?;
    let mut numbers = numbers.split_ascii_whitespace().map(str::parse::<u64>);
    let mut next = |skip: usize| numbers.nth(skip)?.ok();
    let stats = InterfaceStats {
        rx_bytes: next(0)?,
        rx_packets: next(0)?,
        rx_errors: next(0)?,
        tx_bytes: next(5)?,
        tx_packets: next(0)?,
        tx_errors: next(0)?,
    };
    Some((name.trim().to_owned(), stats))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_none_are_none() {
        for (text, want) in [
            ("9223372036854771712\n", None),
            ("9223372036854710272\n", None), // 64 KiB pages
            ("67108864\n", Some(67_108_864)),
            ("", None),
            ("-1\n", None),
        ] {
            assert_eq!(limit_v1(text), want, "{text}");
        }
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("2048\n"), Some(2048));
    }

    #[test]
    fn a_key_is_matched_whole() {
        let text = "low 0\noom 7\noom_kill 3\noom_group_kill 9\n";
        assert_eq!(keyed(text, "oom_kill"), Some(3));
        assert_eq!(keyed(text, "oom"), Some(7));
        assert_eq!(keyed(text, "oom_ki"), None);
        assert_eq!(keyed("oom_kill x\n", "oom_kill"), None);
    }

    #[test]
    fn block_io_is_summed_over_devices_and_totals_are_not_counted_twice() {
        let text = "8:0 Read 4096\n8:0 Write 100\n8:0 Sync 1\n8:0 Total 4197\n8:16 Read 4\nTotal 9999\ngarbage\n";
        assert_eq!(blkio(text), (4100, 100));
        assert_eq!(blkio("Total 0\n"), (0, 0));
        let text =
            "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5 dios=6\n8:16 rbytes=1 wbytes=x rios=1 wios=1\n252:0 \n";
        let stats = io_stat(text);
        assert_eq!(
            (stats.read_bytes, stats.write_bytes, stats.read_ops, stats.write_ops),
            (Some(11), Some(20), Some(2), Some(3))
        );
    }

    #[test]
    fn pressure_without_a_full_line_has_none() {
        let some = "some avg10=1.50 avg60=0.25 avg300=0.00 total=12345\n";
        let read = pressure(some).unwrap();
        assert_eq!((read.some_avg10, read.some_total_usec, read.full_avg10), (1.5, 12345, None));
        let both = format!("{some}full avg10=0.10 avg60=0.00 avg300=0.00 total=7\n");
        assert_eq!(pressure(&both).unwrap().full_total_usec, Some(7));
        assert_eq!(pressure(""), None);
        assert_eq!(pressure("some avg10=x\n"), None);
    }

    #[test]
    fn every_interface_but_the_loopback_is_counted() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:    1000       8    0    0    0     0          0         0     1000       8    0    0    0     0       0          0\n  \
            eth0: 123456     99    1    2    0     0          0         0    65432     77    3    0    0     0       0          0\n\
            a:b0: 1 2 3 4 5 6 7 8 9 10 11 12\n broken: 1 2\n";
        let read = interfaces(text);
        assert_eq!(read.keys().collect::<Vec<_>>(), ["a:b0", "eth0"]);
        let eth0 = &read["eth0"];
        assert_eq!((eth0.rx_bytes, eth0.rx_packets, eth0.rx_errors), (123_456, 99, 1));
        assert_eq!((eth0.tx_bytes, eth0.tx_packets, eth0.tx_errors), (65_432, 77, 3));
    }
}
