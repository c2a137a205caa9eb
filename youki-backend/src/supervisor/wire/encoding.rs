//! How the values of a frame are laid out in its bytes.

use std::time::Duration;

use runtime_core::spec::{RestartKind, RestartPolicy};

use super::{Malformed, VERSION, frame_len};

/// By their numbers in a frame.
const RESTART_KINDS: [RestartKind; 4] =
    [RestartKind::No, RestartKind::Always, RestartKind::UnlessStopped, RestartKind::OnFailure];

pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, VERSION, kind])
    }

    pub(super) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn i32(self, value: i32) -> Self {
        self.u32(value as u32)
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(super) fn bytes(self, value: &[u8]) -> Self {
        let mut writer = self.u32(value.len() as u32);
        writer.0.extend_from_slice(value);
        writer
    }

    pub(super) fn restart_policy(self, policy: &RestartPolicy) -> Self {
        let kind = RESTART_KINDS.iter().position(|kind| *kind == policy.kind).unwrap_or(0) as u8;
        let writer = self.u8(kind).u8(policy.max_attempts.is_some().into()).u32(policy.max_attempts.unwrap_or(0));
        let delay_ns = policy.delay.map(|delay| u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX));
        writer.u8(delay_ns.is_some().into()).u64(delay_ns.unwrap_or(0))
    }

    pub(super) fn list(self, values: &[Vec<u8>]) -> Self {
        values.iter().fold(self.u32(values.len() as u32), |writer, value| writer.bytes(value))
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let len = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&len.to_le_bytes());
        self.0
    }
}

pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Checks the header and gives the kind.
    pub(super) fn open(frame: &'a [u8]) -> Result<(u8, Self), Malformed> {
        if frame_len(frame)? != Some(frame.len()) {
            return Err(Malformed("length does not match"));
        }
        if frame[4] != VERSION {
            return Err(Malformed("unknown version"));
        }
        Ok((frame[5], Self(&frame[6..])))
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Malformed("too short"))?;
        self.0 = tail;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.take::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.take().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u32()? as usize;
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed("too short"))?;
        self.0 = tail;
        Ok(head)
    }

    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn restart_policy(&mut self) -> Result<RestartPolicy, Malformed> {
        let kind = *RESTART_KINDS.get(usize::from(self.u8()?)).ok_or(Malformed("unknown restart policy"))?;
        let (is_limited, max_attempts) = (self.u8()? != 0, self.u32()?);
        let (has_delay, delay_ns) = (self.u8()? != 0, self.u64()?);
        Ok(RestartPolicy {
            kind,
            max_attempts: is_limited.then_some(max_attempts),
            delay: has_delay.then_some(Duration::from_nanos(delay_ns)),
        })
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// A number of elements of at least `size` bytes each: never more than what is left can hold.
    pub(super) fn count(&mut self, size: usize) -> Result<usize, Malformed> {
        let count = self.u32()? as usize;
        if count > self.0.len() / size { Err(Malformed("too short")) } else { Ok(count) }
    }

    pub(super) fn list(&mut self) -> Result<Vec<Vec<u8>>, Malformed> {
        (0..self.count(4)?).map(|_| self.bytes().map(<[u8]>::to_vec)).collect()
    }
}
