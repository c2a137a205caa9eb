//! The helper that builds the container, and the init's start.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use runtime_core::{Event, EventKind};

use super::super::events::{self, Source};
use super::super::{clock, exec, stack};
use super::{Attempt, BUILD_DEADLINE, KILL_PATIENCE};
use crate::journal::Journal;
use crate::process::ProcessName;
use crate::supervisor::failure::Failure;
use crate::supervisor::wire::{ExecStep, Phase, Reply};

impl Attempt {
    pub(super) fn reap(&mut self) {
        while let Some((pid, status)) = events::reap() {
            if pid == self.init_pid {
                self.init_pid = 0;
                // Nobody is to start what its helper still works at.
                if self.helper_pid.is_some() && matches!(self.phase, Phase::Creating | Phase::Restarting) {
                    self.abandon(&format!("its init ended while it was made ready, with status {status:#x}"));
                }
                self.ended = self.ended.or(Some(status));
            } else if Some(pid) == self.helper_pid {
                self.helper_pid = None;
                self.read_result();
                // Not before the helper has left the cgroup with its end.
                match self.built {
                    true => self.created(),
                    false => self.abandon(&format!("its helper ended with status {status:#x}")),
                }
            } else if let Some(slot) =
                self.execs.iter().position(|exec| exec.as_ref().is_some_and(|exec| exec.pid == pid))
            {
                self.end_exec(slot, status);
            } else {
                self.log.child_ended(pid);
            }
        }
    }

    /// The helper's lines.
    pub(super) fn read_result(&mut self) {
        let Some(pipe) = self.result.take() else { return };
        let mut chunk = [0; 4096];
        let mut file = fs::File::from(pipe);
        let over = loop {
            match file.read(&mut chunk) {
                Ok(0) => break true,
                Ok(count) => self.result_text.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        if over {
            self.events.remove(&file);
        } else {
            self.result = Some(file.into());
        }
        while let Some(end) = memchr::memchr(b'\n', &self.result_text) {
            let line: Vec<u8> = self.result_text.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            match line.split_once(' ') {
                None if line == "build" => self.build_by = Some(Instant::now() + BUILD_DEADLINE),
                None if line == "done" => self.built = true,
                Some(("pid", pid)) => match pid.parse() {
                    Ok(pid) if events::is_child(pid) => self.init_pid = pid,
                    _ => self.abandon("its init ended while it was made ready"),
                },
                Some(("error", failure)) => self.abandon_for(Failure::from_line(failure)),
                _ => say!("the helper said {line:?}"),
            }
        }
    }

    pub(super) fn created(&mut self) {
        if !matches!(self.phase, Phase::Creating | Phase::Restarting) || self.ended.is_some() {
            return;
        }
        self.build_by = None;
        // Its appearance is what tells a created container from an abandoned one; by its content the init is found if
        // this process is lost.
        let init = ProcessName::of(self.init_pid).ok().flatten().unwrap_or_default();
        if let Err(error) = fs::write(self.config.container_dir.join("created"), init.to_string()) {
            return self.abandon(&format!("writing its mark: {error}"));
        }
        if let Some(result) = self.result.take() {
            self.events.remove(&result);
        }
        if self.phase == Phase::Restarting {
            return self.tell_init_to_start();
        }
        self.phase = Phase::Created;
        self.reply(0, &Reply::Created { pid: self.init_pid });
    }

    /// The container could not be built: whatever there is of it is killed, and the agent told why.
    pub(super) fn abandon(&mut self, why: &str) {
        self.abandon_for(Failure::from(why));
    }

    fn abandon_for(&mut self, why: Failure) {
        if !matches!(self.phase, Phase::Creating | Phase::Restarting) || self.ended.is_some() {
            return;
        }
        say!("creating the container failed: {}", why.text);
        if let Some(helper) = self.helper_pid {
            // SAFETY: our child, not yet reaped.
            unsafe { libc::kill(helper, libc::SIGKILL) };
        }
        self.kill_all();
        // libcontainer's own processes are our children too, and die with their cgroup.
        let patience = Instant::now() + KILL_PATIENCE;
        while self.cgroup.pids().is_ok_and(|pids| !pids.is_empty()) && Instant::now() < patience {
            let _ = self.cgroup.signal_all();
            let _ = self.events.wait(Some(Duration::from_millis(5)));
            events::drain(&self.children);
            while let Some((pid, _)) = events::reap() {
                self.log.child_ended(pid);
            }
        }
        if self.phase == Phase::Restarting {
            // It counts as an attempt that failed.
            (self.helper_pid, self.init_pid, self.build_by) = (None, 0, None);
            self.answer_starters(&Reply::Failed(why.clone()));
            self.build_failure = Some(why.text);
            self.ended = Some(libc::SIGKILL);
            return;
        }
        let _ = self.cgroup.remove();
        self.remove_socket();
        self.reply(0, &Reply::Failed(why));
        std::process::exit(1);
    }

    pub(super) fn start(&mut self, slot: usize) {
        match self.phase {
            // Told once, also when whoever asked for it is gone.
            Phase::Created if self.started_at_nanos == 0 => {
                self.starters.push(slot);
                self.restarts.by_hand = true;
                self.tell_init_to_start();
            }
            Phase::Created => self.starters.push(slot),
            // It need not wait any longer.
            Phase::Restarting => {
                self.starters.push(slot);
                self.restarts.by_hand = true;
                self.restarts.schedule.begin_anew();
                self.restarts.due = self.restarts.due.map(|_| Instant::now());
            }
            Phase::Running => self.reply(slot, &Reply::Ok),
            _ => self.reply(slot, &Reply::Error("it is stopping".to_owned())),
        }
    }

    fn tell_init_to_start(&mut self) {
        let armed = self.errno.as_ref().map(|errno| self.events.add(errno, Source::Errno));
        let told = armed.unwrap_or(Ok(())).and_then(|()| self.notify_init());
        self.started_at_nanos = clock::now_nanos();
        self.restarts.started = Some(Instant::now());
        if let Err(error) = told {
            let what = format!("telling the init to start failed: {error}");
            self.started_at_nanos = 0;
            // To be told of it again with the next start.
            if let Some(errno) = &self.errno {
                self.events.remove(errno);
            }
            self.answer_starters(&Reply::Error(what.clone()));
            if self.phase == Phase::Restarting {
                self.abandon(&what);
            }
        }
    }

    /// What `libcontainer::Container::start` does. From within the directory, as a socket's path is short.
    pub(super) fn notify_init(&self) -> io::Result<()> {
        std::env::set_current_dir(&self.config.state_dir)?;
        let result = UnixStream::connect("notify.sock").and_then(|mut socket| socket.write_all(b"start container"));
        std::env::set_current_dir("/")?;
        result
    }

    pub(super) fn read_errno(&mut self) {
        let Some(pipe) = self.errno.take() else { return };
        self.events.remove(&pipe);
        self.exec_errno = exec::read_errno(pipe).map(|(errno, _)| errno);
        match self.exec_errno {
            Some(errno) => self.answer_starters(&Reply::ExecFailed { errno, step: ExecStep::Program }),
            None => {
                self.restarts.by_hand = false;
                self.phase = Phase::Running;
                self.tell(Event { attempt: Some(self.config.attempt), ..Event::now(EventKind::Start) });
                self.answer_starters(&Reply::Ok);
                self.tell_of_start();
                stack::give_back();
            }
        }
    }

    /// Puts an event of this container into the journal.
    pub(super) fn tell(&self, event: Event) {
        if let Some(dir) = &self.config.events {
            let id = self.config.container_dir.file_name().unwrap_or_default().to_string_lossy();
            Journal::new(dir).put(event.of(id));
        }
    }

    pub(super) fn answer_starters(&mut self, reply: &Reply) {
        for slot in std::mem::take(&mut self.starters) {
            self.reply(slot, reply);
        }
    }
}
