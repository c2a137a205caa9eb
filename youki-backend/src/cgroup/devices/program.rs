//! The program that the kernel asks on cgroup v2 whether a device may be used (BPF_PROG_TYPE_CGROUP_DEVICE): made from the
//! rules, loaded, and attached to the cgroup, which it goes with.
//!
//! It gets a `bpf_cgroup_dev_ctx` (linux/bpf.h) in r1 and answers by r0: 1 for yes. Rules are tried one after the other;
//! each is a few comparisons that jump to the next rule, and a yes at its end. After the last there is a no.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::{Access, DeviceKind, DeviceRule};

// linux/bpf.h: commands of bpf(2), the kind of program, where it is attached, and that others may be there too.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// A program in a cgroup above is asked as well: both must agree.
const BPF_F_ALLOW_MULTI: u32 = 2;

// Its numbers for kinds of device, in the low half of `access_type`, and for what is asked, in the high half.
const BPF_DEVCG_DEV_BLOCK: i32 = 1;
const BPF_DEVCG_DEV_CHAR: i32 = 2;
const BPF_DEVCG_ACC_MKNOD: i32 = 1;
const BPF_DEVCG_ACC_READ: i32 = 2;
const BPF_DEVCG_ACC_WRITE: i32 = 4;

// Offsets in `bpf_cgroup_dev_ctx`.
const ACCESS_TYPE: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;

// What the program keeps where.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ASKED: u8 = 3;
const MAJOR_REGISTER: u8 = 4;
const MINOR_REGISTER: u8 = 5;
const SCRATCH: u8 = 6;

// Instructions (Documentation/bpf/instruction-set.rst), all on 32 bits.
/// dst = *(u32 *)(src + offset)
const LOAD: u8 = 0x61;
/// dst &= immediate
const AND: u8 = 0x54;
/// dst >>= immediate
const SHIFT_RIGHT: u8 = 0x74;
/// dst = src
const MOVE: u8 = 0xbc;
/// dst = immediate
const SET: u8 = 0xb4;
/// if dst != immediate, go on `offset` instructions further
const UNLESS_EQUAL: u8 = 0x56;
/// if dst != src, go on `offset` instructions further
const UNLESS_SAME: u8 = 0x5e;
/// return r0
const EXIT: u8 = 0x95;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half (x86_64, aarch64: little-endian bit fields).
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The part of `union bpf_attr` that loading needs; the kernel takes what follows for zero.
#[repr(C)]
#[derive(Debug, Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part that attaching needs.
#[repr(C)]
#[derive(Debug, Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Makes the cgroup `dir` refuse what `rules` do not allow.
///
/// # Errors
/// The kernel's.
pub(super) fn attach(dir: &Path, rules: &[DeviceRule]) -> io::Result<()> {
    let cgroup = File::open(dir)?;
    let program = load(&compile(rules))?;
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        // It calls no function that is only for programs under the GPL.
        licence: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just made it for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of a live value, and what that points to lives as long as the
    // caller's borrow; nothing of it is written, since no log is asked for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    // Descriptors and zero fit.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD, KIND, CONTEXT, ACCESS_TYPE, 0),
        instruction(MOVE, ASKED, KIND, 0, 0),
        instruction(SHIFT_RIGHT, ASKED, 0, 0, 16),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(LOAD, MAJOR_REGISTER, CONTEXT, MAJOR, 0),
        instruction(LOAD, MINOR_REGISTER, CONTEXT, MINOR, 0),
    ];
    for rule in rules {
        let conditions = conditions(rule);
        let unconditional = conditions.is_empty();
        // From each condition past the rest of them and past the answer.
        let length = conditions.len();
        program.extend(conditions.into_iter().enumerate().map(|(index, one)| match one.code {
            UNLESS_EQUAL | UNLESS_SAME => Instruction { offset: (length - index + 1) as i16, ..one },
            _ => one,
        }));
        program.extend(answer(1));
        if unconditional {
            // The kernel refuses a program with parts that are never reached.
            return program;
        }
    }
    program.extend(answer(0));
    program
}

/// What must hold for `rule` to allow what is asked; jumps without their targets.
fn conditions(rule: &DeviceRule) -> Vec<Instruction> {
    let mut conditions = Vec::new();
    if let Some(kind) = rule.kind {
        let number = match kind {
            DeviceKind::Block => BPF_DEVCG_DEV_BLOCK,
            DeviceKind::Char => BPF_DEVCG_DEV_CHAR,
        };
        conditions.push(instruction(UNLESS_EQUAL, KIND, 0, 0, number));
    }
    if rule.access != Access::ALL {
        let Access { read, write, mknod } = rule.access;
        let allowed = [(read, BPF_DEVCG_ACC_READ), (write, BPF_DEVCG_ACC_WRITE), (mknod, BPF_DEVCG_ACC_MKNOD)];
        let allowed = allowed.iter().filter(|(granted, _)| *granted).fold(0, |mask, (_, bit)| mask | bit);
        // Several things may be asked at once, as reading and writing: all of them must be allowed.
        conditions.push(instruction(MOVE, SCRATCH, ASKED, 0, 0));
        conditions.push(instruction(AND, SCRATCH, 0, 0, allowed));
        conditions.push(instruction(UNLESS_SAME, SCRATCH, ASKED, 0, 0));
    }
    for (register, number) in [(MAJOR_REGISTER, rule.major), (MINOR_REGISTER, rule.minor)] {
        conditions.extend(number.map(|number| instruction(UNLESS_EQUAL, register, 0, 0, number.cast_signed())));
    }
    conditions
}

fn answer(value: i32) -> [Instruction; 2] {
    [instruction(SET, ANSWER, 0, 0, value), instruction(EXIT, 0, 0, 0, 0)]
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program answers: as the kernel would run it, for the instructions that it is made of.
    fn asked(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let (mut registers, mut at) = ([0i32; 11], 0);
        loop {
            let Instruction { code, registers: names, offset, immediate } = program[at];
            let (destination, source) = (usize::from(names & 15), usize::from(names >> 4));
            at += 1;
            let jumps = match code {
                LOAD => {
                    assert_eq!(source, usize::from(CONTEXT));
                    registers[destination] = context[usize::try_from(offset).unwrap() / 4];
                    false
                }
                AND => {
                    registers[destination] &= immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[destination] = (registers[destination].cast_unsigned() >> immediate).cast_signed();
                    false
                }
                MOVE => {
                    registers[destination] = registers[source];
                    false
                }
                SET => {
                    registers[destination] = immediate;
                    false
                }
                UNLESS_EQUAL => registers[destination] != immediate,
                UNLESS_SAME => registers[destination] != registers[source],
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            };
            if jumps {
                at += usize::try_from(offset).unwrap();
            }
        }
    }

    fn rule(kind: DeviceKind, major: Option<u32>, minor: Option<u32>, access: Access) -> DeviceRule {
        DeviceRule { kind: Some(kind), major, minor, access }
    }

    #[test]
    fn what_a_rule_allows_is_allowed_and_nothing_else() {
        let read_only = Access { read: true, write: false, mknod: false };
        let rules = [
            rule(DeviceKind::Char, None, None, Access::MKNOD),
            rule(DeviceKind::Char, Some(1), Some(3), Access::ALL),
            rule(DeviceKind::Block, Some(8), None, read_only),
        ];
        let program = compile(&rules);
        let (block, char) = (BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_DEV_CHAR);
        let (m, r, w) = (BPF_DEVCG_ACC_MKNOD, BPF_DEVCG_ACC_READ, BPF_DEVCG_ACC_WRITE);
        for (kind, access, major, minor, want) in [
            (char, m, 7, 7, true),
            (char, m | r, 7, 7, false),
            (char, r | w | m, 1, 3, true),
            (char, r, 1, 4, false),
            (char, r, 2, 3, false),
            (block, r, 1, 3, false),
            (block, r, 8, 0, true),
            (block, r, 8, 255, true),
            (block, r | w, 8, 0, false),
            (block, w, 8, 0, false),
            (block, m, 8, 0, false),
            (block, r, 9, 0, false),
        ] {
            assert_eq!(asked(&program, kind, access, major, minor), want, "{kind} {access} {major}:{minor}");
        }
        assert!(!asked(&compile(&[]), char, r, 1, 3));
        let everything = [rule(DeviceKind::Char, Some(1), Some(3), Access::ALL), DeviceRule::ALL, rules[0]];
        assert!(asked(&compile(&everything), block, r | w, 8, 0));
    }

    #[test]
    fn the_kernel_takes_the_program_whatever_the_rules() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("not root: not checked");
        }
        let char = rule(DeviceKind::Char, Some(u32::MAX), Some(0), Access::ALL);
        for rules in [&[][..], &[DeviceRule::ALL], &[char], &[char, DeviceRule::ALL, char], &[char; 1000]] {
            load(&compile(rules)).unwrap_or_else(|error| panic!("{} rules: {error}", rules.len()));
        }
    }
}
