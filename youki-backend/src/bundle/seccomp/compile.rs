//! A resolved profile as BPF.
//!
//! libseccomp translates names to numbers for each architecture and arranges the comparisons as a binary tree. It knows
//! no system call newer than itself, and the answer EPERM to a call that a newer C library merely tries breaks
//! programs. So a few instructions go in front: calls that a rule names and the library does not know are decided
//! there, and calls that nobody knew when this was written fail with ENOSYS, as runc does it.

use std::fs::File;
use std::io::{Read, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

use super::load::{INSTRUCTION_BYTES, MAX_INSTRUCTIONS};
use super::profile::{Action, Arg, Compare, Profile, Rule, Target};
use crate::error::{Error, Result};
use crate::memfd;

/// Numbers of the newest system calls, the same on every architecture that runs Linux containers.
const NEW_CALLS: [(&str, u32); 21] = [
    ("futex_waitv", 449),
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// Bit that tells x32 calls from x86-64 ones.
const X32_BIT: u32 = 0x4000_0000;

/// Return values of a filter.
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_KILL_THREAD: u32 = 0;
const RET_TRAP: u32 = 0x0003_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_TRACE: u32 = 0x7ff0_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const RET_ALLOW: u32 = 0x7fff_0000;

/// Compiles `profile` for `target`. Takes some ten milliseconds.
pub(super) fn compile(profile: &Profile, target: Target<'_>) -> Result<Vec<u8>> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: libseccomp::error::SeccompError| Error::Seccomp { what, source: Some(Box::new(error)) }
    };
    let mut context = ScmpFilterContext::new(scmp(profile.default)).map_err(failed("beginning a filter"))?;
    // A binary tree: a call is found in 9 comparisons instead of up to 400. Older libraries only make a chain.
    if let Err(error) = context.set_ctl_optimize(2) {
        tracing::debug!(%error, "libseccomp cannot arrange the filter as a tree");
    }
    for name in profile.compatible_arches(target) {
        let arch: ScmpArch = name.parse().map_err(failed(&format!("architecture {name}")))?;
        context.add_arch(arch).map_err(failed(&format!("adding the architecture {name}")))?;
    }
    let mut ahead = Vec::new();
    for rule in profile.rules_for(target) {
        for name in &rule.names {
            match ScmpSyscall::from_name(name) {
                Ok(call) => add(&mut context, call, rule).map_err(failed(&format!("a rule for {name}")))?,
                // A name that neither the library nor we know does not exist here: docker passes it over too.
                Err(_) => ahead.extend(decided_ahead(name, rule)),
            }
        }
    }
    let mut bytes = prelude(&ahead, profile.default);
    bytes.extend(export(&context)?);
    let limit = MAX_INSTRUCTIONS * INSTRUCTION_BYTES;
    if bytes.len() > limit {
        let what =
            format!("the filter has {} instructions; {MAX_INSTRUCTIONS} are possible", bytes.len() / INSTRUCTION_BYTES);
        return Err(Error::Seccomp { what, source: None });
    }
    Ok(bytes)
}

fn add(
    context: &mut ScmpFilterContext,
    call: ScmpSyscall,
    rule: &Rule,
) -> std::result::Result<(), libseccomp::error::SeccompError> {
    let repeated =
        rule.args.iter().enumerate().any(|(n, arg)| rule.args[..n].iter().any(|other| other.index == arg.index));
    if repeated {
        // Two comparisons of one argument are alternatives, as with runc.
        for arg in &rule.args {
            context.add_rule_conditional(scmp(rule.action), call, &[compare(arg)])?;
        }
    } else if rule.args.is_empty() {
        context.add_rule(scmp(rule.action), call)?;
    } else {
        let compares: Vec<ScmpArgCompare> = rule.args.iter().map(compare).collect();
        context.add_rule_conditional(scmp(rule.action), call, &compares)?;
    }
    Ok(())
}

/// The filter as libseccomp writes it. (Handing over memory instead needs libseccomp 2.6.)
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>> {
    let memory = memfd::create(c"berth-seccomp").map_err(|error| Error::io("making", "a memfd")(error.into()))?;
    context
        .export_bpf(&memory)
        .map_err(|error| Error::Seccomp { what: "compiling the filter".to_owned(), source: Some(Box::new(error)) })?;
    let mut file = File::from(memory);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(Error::io("reading", "a memfd"))?;
    Ok(bytes)
}

/// The number and the answer for a call that only we know. Rules with arguments are left to libseccomp: none of these
/// calls has one in docker's profile.
fn decided_ahead(name: &str, rule: &Rule) -> Option<(u32, u32)> {
    let number = NEW_CALLS.iter().find(|(known, _)| *known == name)?.1;
    rule.args.is_empty().then(|| (number, raw(rule.action)))
}

/// Instructions in front of libseccomp's: `ahead` by number, then ENOSYS for numbers beyond all known ones, where the
/// profile refuses what it does not name.
fn prelude(ahead: &[(u32, u32)], default: Action) -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const AND: u16 = 0x54;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER: u16 = 0x25;
    const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    let last_known = NEW_CALLS[NEW_CALLS.len() - 1].1;
    let mut tests: Vec<(u16, u8, u8, u32)> = Vec::new();
    for (number, answer) in ahead {
        tests.push((JUMP_EQUAL, 0, 1, *number));
        tests.push((RETURN, 0, 0, *answer));
    }
    if matches!(default, Action::Errno(_)) {
        tests.push((JUMP_GREATER, 0, 1, last_known));
        tests.push((RETURN, 0, 0, RET_ERRNO | libc::ENOSYS as u32));
    }
    if tests.is_empty() {
        return Vec::new();
    }
    let first = ahead.iter().map(|(number, _)| *number).min().unwrap_or(last_known);
    // Fewer than 50 tests: the jump fits into its byte.
    let skip = tests.len() as u8;
    let mut program = vec![(LOAD, 0, 0, 0)];
    if cfg!(target_arch = "x86_64") {
        program.push((AND, 0, 0, !X32_BIT));
    }
    program.push((JUMP_GREATER_OR_EQUAL, 0, skip, first));
    program.extend(tests);
    program
        .iter()
        .flat_map(|(code, jump_true, jump_false, value)| {
            let mut bytes = [0; INSTRUCTION_BYTES];
            bytes[..2].copy_from_slice(&code.to_ne_bytes());
            bytes[2..4].copy_from_slice(&[*jump_true, *jump_false]);
            bytes[4..].copy_from_slice(&value.to_ne_bytes());
            bytes
        })
        .collect()
}

fn scmp(action: Action) -> ScmpAction {
    match action {
        Action::Allow => ScmpAction::Allow,
        // At most 4095: it fits.
        Action::Errno(errno) => ScmpAction::Errno(errno as i32),
        Action::KillProcess => ScmpAction::KillProcess,
        Action::KillThread => ScmpAction::KillThread,
        Action::Log => ScmpAction::Log,
        Action::Trace(message) => ScmpAction::Trace(message),
        Action::Trap => ScmpAction::Trap,
    }
}

fn raw(action: Action) -> u32 {
    match action {
        Action::Allow => RET_ALLOW,
        Action::Errno(errno) => RET_ERRNO | errno,
        Action::KillProcess => RET_KILL_PROCESS,
        Action::KillThread => RET_KILL_THREAD,
        Action::Log => RET_LOG,
        Action::Trace(message) => RET_TRACE | u32::from(message),
        Action::Trap => RET_TRAP,
    }
}

fn compare(arg: &Arg) -> ScmpArgCompare {
    let op = match arg.compare {
        Compare::Equal => ScmpCompareOp::Equal,
        Compare::Greater => ScmpCompareOp::Greater,
        Compare::GreaterOrEqual => ScmpCompareOp::GreaterEqual,
        Compare::Less => ScmpCompareOp::Less,
        Compare::LessOrEqual => ScmpCompareOp::LessOrEqual,
        Compare::NotEqual => ScmpCompareOp::NotEqual,
        Compare::MaskedEqual(mask) => ScmpCompareOp::MaskedEqual(mask),
    };
    ScmpArgCompare::new(arg.index, op, arg.value)
}
