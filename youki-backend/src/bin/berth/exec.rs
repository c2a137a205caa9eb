//! `exec`: a further process in a running container.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use runtime_core::{ContainerId, ExecOptions};
use rustix::fs::{FileType, Stat};
use youki_backend::{Config, ExecRequest};

use crate::cli::ExecArgs;
use crate::failure::{Failure, Result};
use crate::flag_values as values;
use crate::lifecycle::container;
use crate::named_flags::naming_its_flag;
use crate::run::with_exec_status;
use crate::session::Session;
use crate::signals::Signals;
use crate::streams::{self, Output};
use crate::terminal::{self, Lent, Typed};

/// `/dev/null`, as Linux numbers it (devices.txt).
const NULL_DEVICE: u64 = libc::makedev(1, 3);
/// Time for what a process on a terminal wrote last, once a signal has ended the exec.
const TIME_TO_LEAVE: Duration = Duration::from_millis(500);

/// `berth exec`
pub async fn exec(config: Config, as_json: bool, args: &ExecArgs) -> Result<i32> {
    let Some((name, command)) = args.name_and_command.split_first() else {
        return Err(Failure::usage("a container is needed"));
    };
    let options = ExecOptions {
        env: values::environment(&args.env_file, &args.env)?,
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        timeout: args.timeout.as_deref().map(|text| values::timeout("--timeout", text)).transpose()?,
        privileged: args.privileged,
        tty: args.tty,
    };
    let id = container(name)?;
    if args.detach && options.timeout.is_some() {
        return Err(Failure::usage("--timeout takes somebody who waits: leave --detach out"));
    }
    let session = Session::open_for(config, as_json, &id).await?;
    if args.detach {
        session.runtime.exec_detached(&id, command, options).await.map_err(refused)?;
        return Ok(0);
    }
    if args.tty {
        return on_terminal(&session, args, &id, command, options).await;
    }
    let (stdout, copy_stdout) = output(io::stdout())?;
    let (stderr, copy_stderr) = output(io::stderr())?;
    let request = ExecRequest { command: command.to_vec(), options, stdio: [input(args.interactive)?, stdout, stderr] };
    let running = session.runtime.start_exec(&id, request).await.map_err(refused)?;
    let code = running.wait().await?;
    // Both are told at once.
    let [stdout, stderr] = [copy_stdout, copy_stderr].map(|copy| async {
        match copy {
            Some(copy) => copy.finish().await,
            None => Ok(()),
        }
    });
    let (stdout, stderr) = tokio::join!(stdout, stderr);
    stdout.and(stderr)?;
    Ok(code)
}

fn refused(error: youki_backend::Error) -> Failure {
    naming_its_flag(with_exec_status(error))
}

async fn on_terminal(
    session: &Session,
    args: &ExecArgs,
    id: &ContainerId,
    command: &[String],
    options: ExecOptions,
) -> Result<i32> {
    if args.interactive && !io::stdin().is_terminal() {
        return Err(Failure::usage("standard input is no terminal: leave --tty out"));
    }
    let terminal = session.runtime.open_terminal(id, terminal::own_size()).await?;
    let (master, stdio) = terminal.into_streams().map_err(|error| Failure::io("using", "the terminal", &error))?;
    let request = ExecRequest { command: command.to_vec(), options, stdio };
    let running = session.runtime.start_exec(id, request).await.map_err(refused)?;
    let shown = master.try_clone().map_err(|error| Failure::io("using", "the terminal", &error))?;
    let mut ending = Signals::listen_to_ending()?;
    // An exec is nobody's but ours: there is nothing that would run on.
    let typed = if args.interactive { Typed::PassedOn } else { Typed::Kept };
    let lent = Lent::to(master, typed)?;
    let output = Output::copy(shown, streams::own(io::stdout())?)?;
    // What would end the command at once would leave its terminal raw.
    let code = tokio::select! {
        code = running.wait() => code?,
        number = ending.next_ending() => {
            // What it goes to may be held up, and whoever asks to leave is not.
            let _ = tokio::time::timeout(TIME_TO_LEAVE, output.finish()).await;
            return Ok(128 + number);
        }
    };
    let copied = tokio::select! {
        copied = output.finish() => copied,
        number = ending.next_ending() => return Ok(128 + number),
    };
    drop(lent);
    copied.map(|()| code)
}

/// What the process reads.
fn input(interactive: bool) -> Result<OwnedFd> {
    if !interactive {
        let null = File::open("/dev/null").map_err(|error| Failure::io("opening", "/dev/null", &error))?;
        return Ok(null.into());
    }
    if is_null(&io::stdin()) {
        return streams::own(io::stdin());
    }
    let (reader, writer) = streams::pipe()?;
    drop(streams::copy(streams::own(io::stdin())?, writer));
    Ok(reader)
}

/// What the process writes to.
fn output(stream: impl AsFd) -> Result<(OwnedFd, Option<Output>)> {
    if is_null(&stream) {
        return Ok((streams::own(stream)?, None));
    }
    let (reader, writer) = streams::pipe()?;
    Ok((writer, Some(Output::copy(reader, streams::own(stream)?)?)))
}

/// Whether it is `/dev/null`, for which the container gets its own. Nothing else of the host's goes there: a file or a pipe could
/// be opened anew through `/proc/self/fd` and be written to, or be held by what the process leaves running; a directory be left
/// upwards, a terminal be typed into.
fn is_null(stream: &impl AsFd) -> bool {
    let is_null =
        |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == NULL_DEVICE;
    rustix::fs::fstat(stream).is_ok_and(is_null)
}
