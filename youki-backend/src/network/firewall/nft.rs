//! Running the program `nft`, or what stands in its place.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::memfd;
use crate::process::ProcessName;

/// How long it may take. It runs under the lock on all ports, so that one that hangs would hold up every start and stop on
/// the root; with 65,535 ports it takes some seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a kill may take. What sleeps in the kernel is left to itself.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// Runs `command` with `input`; how it ended, and what it wrote to its standard error. Blocks. Files stand for pipes, which
/// who does not read or write would block.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::TimedOut`] for one that was killed after `patience`.
pub(super) fn run(command: &mut Command, input: &str, patience: Duration) -> io::Result<(ExitStatus, String)> {
    let mut stdin = memory()?;
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let mut stderr = memory()?;
    let mut child = command.stdin(stdin).stdout(Stdio::null()).stderr(stderr.try_clone()?).spawn()?;
    let process = i32::try_from(child.id()).ok().and_then(|pid| ProcessName::of(pid).ok().flatten());
    let has_ended = |patience| process.is_none_or(|process| process.wait_for_end(patience));
    if !has_ended(patience) {
        child.kill()?;
        if has_ended(KILL_PATIENCE) {
            child.wait()?;
        }
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it did not end within {patience:?}, and is killed"),
        ));
    }
    let status = child.wait()?;
    let mut said = Vec::new();
    stderr.rewind()?;
    stderr.read_to_end(&mut said)?;
    Ok((status, String::from_utf8_lossy(&said).trim().to_owned()))
}

fn memory() -> io::Result<File> {
    Ok(memfd::create(c"berth-nft")?.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_it_says_is_told_with_how_it_ended() {
        let (status, said) =
            run(Command::new("sh").args(["-c", "cat >&2; exit 3"]), "a rule\n", Duration::from_secs(60)).unwrap();
        assert_eq!((status.code(), said.as_str()), (Some(3), "a rule"));
        let error = run(&mut Command::new("/no/such/program"), "", Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn one_that_hangs_and_reads_nothing_is_killed() {
        let begun = Instant::now();
        let much = "x".repeat(1 << 20);
        let error = run(Command::new("sleep").arg("600"), &much, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}
