use super::*;

/// A header with a right checksum.
pub(crate) fn header(name: &[u8], flag: u8, size: u64, change: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut block = [0u8; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    change(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

pub(crate) fn with_data(mut header: Vec<u8>, data: &[u8]) -> Vec<u8> {
    header.extend_from_slice(data);
    header.resize(header.len().next_multiple_of(BLOCK), 0);
    header
}

pub(crate) fn pax(records: &[(&str, &[u8])], flag: u8) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    with_data(header(b"pax", flag, data.len() as u64, |_| {}), &data)
}

fn read(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = TarReader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        while reader.data(u64::MAX, |piece| data.extend_from_slice(piece))?.is_some() {}
        entries.push((entry, data));
    }
    Ok(entries)
}

fn one(archive: &[u8]) -> (Entry, Vec<u8>) {
    let mut entries = read(archive).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

#[test]
fn names_come_from_prefix_gnu_and_pax_headers() {
    let long = vec![b'n'; 300];
    let gnu = [
        with_data(header(b"././@LongLink", b'L', 301, |_| {}), &[&long[..], b"\0"].concat()),
        header(b"x", b'0', 0, |_| {}),
    ];
    let prefixed = header(b"name", b'0', 0, |b| b[345..350].copy_from_slice(b"a/b/c"));
    for (archive, path) in [
        (gnu.concat(), &long[..]),
        (prefixed, b"a/b/c/name"),
        ([pax(&[("path", b"p\xff\xfe")], b'x'), header(b"x", b'0', 0, |_| {})].concat(), b"p\xff\xfe"),
        (header(b"dir/", b'5', 0, |_| {}), b"dir"),
        (header(b"old/", 0, 0, |_| {}), b"old"),
    ] {
        assert_eq!(one(&archive).0.path, path);
    }
}

#[test]
fn global_headers_last_until_local_or_later_ones() {
    let file = |name: &[u8]| header(name, b'0', 0, |_| {});
    let archive = [
        pax(&[("uid", b"7"), ("mtime", b"5")], b'g'),
        file(b"a"),
        pax(&[("uid", b"8")], b'x'),
        file(b"b"),
        pax(&[("uid", b"")], b'g'),
        file(b"c"),
    ]
    .concat();
    let entries = read(&archive).unwrap();
    let seen: Vec<(u32, i64)> = entries.iter().map(|(e, _)| (e.uid, e.mtime.seconds)).collect();
    assert_eq!(seen, [(7, 5), (8, 5), (0, 5)]);
}

#[test]
fn numbers_are_octal_base_256_or_pax() {
    let set = |range: std::ops::Range<usize>, bytes: &'static [u8]| {
        header(b"x", b'0', 0, move |b| b[range.start..range.start + bytes.len()].copy_from_slice(bytes))
    };
    assert_eq!(one(&set(108..116, b"\x80\0\0\0\xff\xff\xff\xfe")).0.uid, u32::MAX - 1);
    assert_eq!(one(&set(136..148, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe")).0.mtime.seconds, -2);
    assert_eq!(one(&set(108..116, b"   17 \0\0")).0.uid, 15);
    for (text, seconds, nanoseconds) in [
        ("12.5", 12, 500_000_000),
        ("-1.25", -2, 750_000_000),
        ("-3", -3, 0),
        ("1.1234567899", 1, 123_456_789),
        ("7.", 7, 0),
    ] {
        let archive = [pax(&[("mtime", text.as_bytes())], b'x'), header(b"x", b'0', 0, |_| {})].concat();
        assert_eq!(one(&archive).0.mtime, Time { seconds, nanoseconds }, "{text}");
    }
}

#[test]
fn where_pax_and_ustar_disagree_on_the_size_pax_counts() {
    let archive =
        [pax(&[("size", b"3")], b'x'), with_data(header(b"x", b'0', 1, |_| {}), b"abc"), header(b"y", b'0', 0, |_| {})];
    let entries = read(&archive.concat()).unwrap();
    assert_eq!((entries[0].1.as_slice(), entries[1].0.path.as_slice()), (&b"abc"[..], &b"y"[..]));
}

#[test]
fn all_sparse_formats_give_the_same_map() {
    let segments = Some(vec![Segment { offset: 512, length: 3 }, Segment { offset: 4096, length: 2 }]);
    let gnu = header(b"s", b'S', 5, |b| {
        b[257..265].copy_from_slice(b"ustar  \0");
        for (i, number) in [512u64, 3, 4096, 2].into_iter().enumerate() {
            b[386 + 12 * i..398 + 12 * i].copy_from_slice(format!("{number:011o}\0").as_bytes());
        }
        b[483..495].copy_from_slice(format!("{:011o}\0", 8192).as_bytes());
    });
    let file = |data: &[u8]| with_data(header(b"x", b'0', data.len() as u64, |_| {}), data);
    let pax_00: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"8192"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.offset", b"512"),
        ("GNU.sparse.numbytes", b"3"),
        ("GNU.sparse.offset", b"4096"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    let pax_01: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"8192"), ("GNU.sparse.name", b"s"), ("GNU.sparse.map", b"512,3,4096,2")];
    let pax_10: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.realsize", b"8192"),
    ];
    let mut map = b"2\n512\n3\n4096\n2\n".to_vec();
    map.resize(BLOCK, 0);
    map.extend_from_slice(b"abcde");
    for (format, archive) in [
        ("old GNU", with_data(gnu, b"abcde")),
        ("PAX 0.0", [pax(pax_00, b'x'), file(b"abcde")].concat()),
        ("PAX 0.1", [pax(pax_01, b'x'), file(b"abcde")].concat()),
        ("PAX 1.0", [pax(pax_10, b'x'), file(&map)].concat()),
    ] {
        let (entry, data) = one(&archive);
        assert_eq!(
            (entry.path.as_slice(), entry.size, &entry.sparse, data.as_slice()),
            (&b"s"[..], 8192, &segments, &b"abcde"[..]),
            "{format}"
        );
    }
}

#[test]
fn malformed_archives_are_errors_and_never_panics() {
    let good = with_data(header(b"x", b'0', 3, |_| {}), b"abc");
    let mut broken_sum = good.clone();
    broken_sum[0] = b'y';
    let overlap = [
        pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"5,3,4,2")], b'x'),
        with_data(header(b"x", b'0', 5, |_| {}), b"abcde"),
    ];
    let huge_map = [
        pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"1")], b'x'),
        with_data(header(b"x", b'0', 512, |_| {}), b"99999999999\n"),
    ];
    for (what, archive) in [
        ("checksum", broken_sum),
        ("cut in data", good[..514].to_vec()),
        ("cut in header", good[..100].to_vec()),
        ("lone zero block", [vec![0; BLOCK], good.clone()].concat()),
        ("unknown type", header(b"x", b'Z', 0, |_| {})),
        ("uid too large", [pax(&[("uid", b"4294967295")], b'x'), good.clone()].concat()),
        ("size no number", [pax(&[("size", b"-1")], b'x'), good.clone()].concat()),
        ("size too large", [pax(&[("size", b"18446744073709551615")], b'x'), good.clone()].concat()),
        ("NUL in path", [pax(&[("path", b"a\0b")], b'x'), good.clone()].concat()),
        ("PAX length", with_data(header(b"p", b'x', 6, |_| {}), b"99 a=b")),
        ("overlapping sparse", overlap.concat()),
        ("sparse map too large", huge_map.concat()),
        ("extended header too large", header(b"p", b'x', (1 << 33) - 1, |_| {})),
        ("not a tar", vec![b'a'; 2048]),
    ] {
        assert!(matches!(read(&archive), Err(TarError::Malformed(_))), "{what}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_end_in_an_error_or_an_end(blocks in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 512), 0..6), flags in proptest::collection::vec(0usize..12, 6)) {
        // With right checksums, so that what stands behind them is reached.
        let archive: Vec<u8> = blocks.iter().zip(flags).flat_map(|(block, flag)| {
            header(&block[..20], b"0123456xgLKS"[flag], u64::from(block[20]), |b| b[300..].copy_from_slice(&block[300..]))
        }).collect();
        let _ = read(&archive);
        let _ = read(&blocks.concat());
    }
}
