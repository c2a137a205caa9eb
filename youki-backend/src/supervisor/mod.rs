//! Supervisors: one small process per container, and the ways to start one and to talk to it.
//!
//! ```text
//! agent ── spawns ──► stage (berth-create) ── forks ──► helper ── libcontainer ──► init, a child of the supervisor
//!                       └─ becomes ──► resident (berth-supervisor) ◄── socket ── agents
//!                                        └─ restarts: executes ──► helper (berth-create) ── libcontainer ──► next init
//! ```

pub(crate) mod client;
pub(crate) mod failure;
pub(crate) mod hang;
mod init;
pub(crate) mod launch;
mod resident;
mod sealed;
pub(crate) mod spawn;
mod stage;
pub(crate) mod wire;

pub(crate) use launch::{CANNOT_EXECUTE, NOT_FOUND, exec_failure_code};
pub(crate) use resident::{RemovalPlan, ResidentConfig};
pub(crate) use stage::{CreatePlan, FillPlan, LIBCONTAINER_ID, Overlay};

/// Bounds of what a supervisor and its helpers write about themselves, in `supervisor.log`.
pub(crate) const MAX_SUPERVISOR_LOG_BYTES: u64 = 1 << 20;

/// What comes beside a plan: a directory, and sockets to be held.
const MAX_PLAN_DESCRIPTORS: usize = 1 + crate::network::MAX_HELD_SOCKETS;

/// Tells a process that it is to be the stage.
pub(crate) const STAGE_ARGUMENT: &str = "--berth-create";

/// Turns this process into a supervisor if it was started as one; else returns at once.
///
/// An agent that ships as a single file calls this first thing in `main`, before any thread is started: Berth then
/// starts the agent's own executable where it would start `berth-create` and `berth-supervisor`. Each supervisor costs
/// the memory of that executable's relocations then; the small executables beside the agent are cheaper.
pub fn run_if_invoked() {
    spawn::SELF_IS_HELPER.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut args = std::env::args_os().skip(1);
    let Some(first) = args.next() else { return };
    if first == STAGE_ARGUMENT {
        create_main();
    }
    if first.as_encoded_bytes() == stage::again::AGAIN_ARGUMENT.to_bytes() {
        create_main();
    }
    if [stage::RESIDENT_ARGUMENT, init::INIT_ARGUMENT].iter().any(|one| first.as_encoded_bytes() == one.to_bytes()) {
        resident_main();
    }
}

/// `main` of `berth-create`: sets up a container on behalf of the agent at standard input, or builds one again for its
/// supervisor.
pub fn create_main() -> ! {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first.as_encoded_bytes() == stage::again::AGAIN_ARGUMENT.to_bytes()) {
        let supervisor = args.next();
        std::process::exit(stage::again::main(supervisor.as_ref().and_then(|pid| pid.to_str())))
    }
    std::process::exit(stage::main())
}

/// `main` of `berth-supervisor`, which is also the tiny init of containers that ask for one.
pub fn resident_main() -> ! {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first.as_encoded_bytes() == init::INIT_ARGUMENT.to_bytes()) {
        std::process::exit(init::main(args));
    }
    let argument = std::env::args().nth(2);
    std::process::exit(resident::main(argument.as_deref()))
}
