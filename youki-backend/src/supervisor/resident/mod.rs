//! The resident supervisor: a small, single-threaded process that a container has for its parent.
//!
//! It takes over from the stage (see [`super::stage`]) by exec, with the descriptors of [`config`]. It waits on one
//! epoll for the helper that builds the container, the init's start, its output, agents' requests, deadlines and its
//! children's ends. When the init ends it writes the exit record, answers who waits and frees the cgroup. Then, if the
//! restart policy says so, it waits and has the container built again, in the namespaces that it holds; else it ends, and
//! with it go its mount namespace (the overlay) and the container's network namespace.

/// A line for supervisor.log.
macro_rules! say {
    ($($argument:tt)*) => { $crate::supervisor::resident::own_log::say(format_args!($($argument)*)) };
}

mod attempt;
mod clock;
mod config;
mod connection;
mod events;
mod exec;
mod heap;
mod log;
mod output;
mod own_log;
mod stack;

pub(crate) use config::{
    CONTROL_FD, ERRNO_FD, FIRST_HELD_FD, HOST_NETWORK_FD, LISTENER_FD, OUTPUT_FDS, PLAN_FD, RESULT_FD, RemovalPlan,
    ResidentConfig, STAGE_FD, STDIN_FD,
};
pub(crate) use exec::check;
pub(crate) use output::PIPE_BYTES;

use attempt::Attempt;

/// Runs the supervisor described by the first argument. Its exit code only says whether it could take over at all.
pub(crate) fn main(argument: Option<&str>) -> i32 {
    match take_over(argument) {
        Ok(attempt) => attempt.run(),
        Err(why) => {
            say!("berth-supervisor: {why}");
            1
        }
    }
}

/// On its own, and the attempt in a box: what this takes of the stack is free again while the container runs.
#[inline(never)]
fn take_over(argument: Option<&str>) -> Result<Box<Attempt>, String> {
    let argument = argument.ok_or("it is started by Berth, with a configuration")?;
    let config = serde_json::from_str::<ResidentConfig>(argument)
        .map_err(|error| format!("its argument is not a configuration: {error}"))?;
    let attempt = Attempt::take_over(config).map_err(|error| format!("taking over failed: {error}"))?;
    Ok(Box::new(attempt))
}
