//! Signals that a foreground run passes on.

use std::future::poll_fn;
use std::io::IsTerminal;
use std::sync::OnceLock;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Failure, Result};

/// All that can be caught and are not the process's own business, as docker's `--sig-proxy`; WINCH beside them. TTIN and TTOU are
/// the terminal's word to this process.
const FORWARDED: [i32; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGXCPU,
];

/// Those by which somebody asks a command to end.
const ENDING: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Signals that follow each other within that are meant as one.
pub const TWO_FOR_ONE: Duration = Duration::from_millis(300);

/// What [`ignored`] told before the first was listened to: what a command is to ignore by `nohup`, or `trap` in a script.
static IGNORED: OnceLock<u64> = OnceLock::new();

/// Listens to them from the time it is made.
#[derive(Debug)]
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// From here on none of them has its usual effect on this process.
    pub fn listen() -> Result<Self> {
        let mut numbers = FORWARDED.to_vec();
        // A terminal sends it for each change of its size, which servers take for an order to stop.
        if !std::io::stdout().is_terminal() && !std::io::stdin().is_terminal() {
            numbers.push(libc::SIGWINCH);
        }
        Self::to(numbers)
    }

    /// The same for those alone that ask to end; but what was ignored when the command began stays so.
    pub fn listen_to_ending() -> Result<Self> {
        Self::to(ENDING.into_iter().filter(|number| !was_ignored(*number)).collect())
    }

    fn to(numbers: Vec<i32>) -> Result<Self> {
        IGNORED.get_or_init(ignored);
        let listen = |number| Ok((number, signal(SignalKind::from_raw(number))?));
        let signals = numbers.into_iter().map(listen).collect::<std::io::Result<_>>();
        signals.map(Self).map_err(|error| Failure::io("listening for", "signals", &error))
    }

    /// The number of the next one. Cancel-safe.
    pub async fn next(&mut self) -> i32 {
        poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// The next one that asks to end, and was not ignored when the command began. Cancel-safe; others that come meanwhile are
    /// lost.
    pub async fn next_ending(&mut self) -> i32 {
        loop {
            let number = self.next().await;
            if asks_to_end(number) && !was_ignored(number) {
                return number;
            }
        }
    }

    /// Another one that asks to end, some time after the first: `timeout` and a terminal that closes send two for one.
    /// Cancel-safe.
    pub async fn another_ending(&mut self) {
        let begun = Instant::now();
        loop {
            self.next_ending().await;
            if begun.elapsed() > TWO_FOR_ONE {
                return;
            }
        }
    }
}

/// Whether who sends it wants the command to end.
pub fn asks_to_end(number: i32) -> bool {
    ENDING.contains(&number)
}

fn was_ignored(number: i32) -> bool {
    IGNORED.get_or_init(ignored) & (1 << (number - 1)) != 0
}

/// The signals that this process ignores, a bit for each (proc_pid_status(5), SigIgn).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
