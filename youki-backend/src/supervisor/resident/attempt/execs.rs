//! Further processes in the container.

use super::super::events::Source;
use super::super::exec::{self, ExecDescriptors};
use super::ending::exit_code;
use super::{Attempt, place};
use crate::supervisor::wire::{ExecRequest, Phase, Reply};

impl Attempt {
    pub(super) fn exec(&mut self, slot: usize, request: &ExecRequest) {
        if !matches!(self.phase, Phase::Running | Phase::Stopping) || self.ended.is_some() {
            return self.reply(slot, &Reply::Error("it does not run".to_owned()));
        }
        let Some(connection) = self.connections[slot].as_mut() else { return };
        let mut take = || connection.descriptors.pop_front();
        let (Some(stdin), Some(stdout), Some(stderr)) = (take(), take(), take()) else {
            return self.reply(slot, &Reply::Error("an exec takes three descriptors".to_owned()));
        };
        let filter = if request.has_filter { take() } else { None };
        if request.has_filter && filter.is_none() {
            return self.reply(slot, &Reply::Error("the filter's descriptor is missing".to_owned()));
        }
        self.exec_count += 1;
        self.left_cgroups.retain(|dir| !exec::remove_cgroup(dir));
        let descriptors = ExecDescriptors { stdio: [stdin, stdout, stderr], filter };
        let container = exec::Place { init_pid: self.init_pid, cgroup: &self.cgroup, may_trace: self.config.may_trace };
        match exec::start(request, descriptors, &container, self.exec_count) {
            Ok(mut exec) => {
                exec.connection = Some(slot);
                let place = place(&mut self.execs, exec);
                if let Some(pipe) = self.execs[place].as_ref().and_then(|exec| exec.errno_pipe.as_ref()) {
                    let _ = self.events.add(pipe, Source::ExecErrno(place));
                }
            }
            Err(error) => self.reply(slot, &Reply::Error(format!("starting the exec failed: {error}"))),
        }
    }

    pub(super) fn read_exec_errno(&mut self, slot: usize) {
        let Some(exec) = self.execs.get_mut(slot).and_then(Option::as_mut) else { return };
        let Some(pipe) = exec.errno_pipe.take() else { return };
        self.events.remove(&pipe);
        let (pid, connection) = (exec.pid, exec.connection);
        let reply = match exec::read_errno(pipe) {
            Some((errno, step)) => {
                // Its exit code says nothing more.
                exec.connection = None;
                Reply::ExecFailed { errno, step }
            }
            None => Reply::ExecStarted { pid },
        };
        if let Some(connection) = connection {
            self.reply(connection, &reply);
        }
    }

    pub(super) fn end_exec(&mut self, slot: usize, status: i32) {
        self.read_exec_errno(slot);
        let Some(exec) = self.execs[slot].take() else { return };
        self.left_cgroups.extend(exec.cgroup.filter(|dir| !exec::remove_cgroup(dir)));
        if let Some(connection) = exec.connection {
            self.reply(connection, &Reply::ExecExited { code: exit_code(status) });
        }
    }
}
