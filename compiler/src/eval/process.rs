//! An environment as a process of its own.
//!
//! The process is a group: what it starts ends with it, and it is always waited
//! for, so that nothing is left behind. No wait is longer than the timeout; a
//! process that is silent for longer is ended. Its stderr is kept, the last
//! lines of it, for the error message.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::Duration,
};

use super::protocol::{ANSWER_BYTES, Header, Hello, MAX_TEXT_BYTES, ProtocolError, Request, Step, excerpt};

/// Lines of stderr that an error repeats.
const N_LINES: usize = 8;
/// How long a process may take to end by itself after it was asked to.
const GRACE: Duration = Duration::from_millis(500);

/// Why an environment process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// The command line is empty or has an open quote.
    #[error("`{command}` is not a command line: {what}")]
    Command {
        /// The command line.
        command: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The program does not start.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The process ended.
    #[error("the environment ended ({status}){stderr}")]
    Ended {
        /// Exit status.
        status: String,
        /// The last lines of its stderr.
        stderr: String,
    },
    /// The process says nothing.
    #[error("the environment was silent for {seconds} s{stderr}")]
    Silent {
        /// The timeout.
        seconds: f64,
        /// The last lines of its stderr.
        stderr: String,
    },
    /// The process does not keep to the protocol.
    #[error("the environment broke the protocol{stderr}")]
    Protocol {
        /// How.
        #[source]
        source: ProtocolError,
        /// The last lines of its stderr.
        stderr: String,
    },
    /// The process says that it cannot.
    #[error("the environment says: {message}{stderr}")]
    Refused {
        /// What it says.
        message: String,
        /// The last lines of its stderr.
        stderr: String,
    },
    /// The pipe cannot be read.
    #[error("cannot talk to the environment")]
    Pipe(#[source] std::io::Error),
}

/// A running environment.
#[derive(Debug)]
pub struct EnvProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: Tail,
    hello: Hello,
    timeout: Duration,
    request: Request,
    payload: Vec<u8>,
}

impl EnvProcess {
    /// Starts a command line and waits for its hello. There is no shell: words
    /// are separated by spaces, and quotes group them.
    ///
    /// # Errors
    /// If it does not start, says nothing within the timeout, or something else.
    pub fn start(command: &str, timeout: Duration) -> Result<Self, EnvError> {
        let words = split(command).map_err(|what| EnvError::Command { command: command.to_owned(), what })?;
        let Some((program, args)) = words.split_first() else {
            return Err(EnvError::Command { command: command.to_owned(), what: "it is empty" });
        };
        let mut process = Command::new(program);
        process.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut process, 0);
        let mut child = process.spawn().map_err(|source| EnvError::Start { program: program.clone(), source })?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(EnvError::Pipe(std::io::ErrorKind::BrokenPipe.into()));
        };
        let hello = Hello {
            name: String::new(),
            observations: Vec::new(),
            action: super::protocol::Port { name: String::new(), shape: Vec::new() },
            max_steps: 1,
            success: false,
            info: Vec::new(),
        };
        // From here on, dropping `env` ends the process.
        let mut env = Self {
            child,
            stdin: Some(stdin),
            stdout,
            stderr: Tail::follow(stderr),
            hello,
            timeout,
            request: Request::default(),
            payload: Vec::new(),
        };
        let line = env.read_line()?;
        env.hello = Hello::parse(&line).map_err(|source| env.broke(source))?;
        Ok(env)
    }

    /// What the environment is.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Begins an episode; `step` holds the first observation.
    ///
    /// # Errors
    /// As [`EnvProcess::step`].
    pub fn reset(&mut self, seed: u64, step: &mut Step) -> Result<(), EnvError> {
        self.request.reset(seed);
        self.exchange(step)
    }

    /// Acts; `step` holds what comes of it.
    ///
    /// # Errors
    /// If the process ends, is silent or breaks the protocol. It is of no more
    /// use then.
    pub fn step(&mut self, action: &[f32], step: &mut Step) -> Result<(), EnvError> {
        self.request.step(action);
        self.exchange(step)
    }

    fn exchange(&mut self, step: &mut Step) -> Result<(), EnvError> {
        let written = match &mut self.stdin {
            Some(stdin) => stdin.write_all(self.request.bytes()),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        };
        if written.is_err() {
            return Err(self.ended());
        }
        let mut bytes = [0; ANSWER_BYTES];
        self.read_exact(&mut bytes)?;
        let header = Header::parse(&bytes, &self.hello).map_err(|source| self.broke(source))?;
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(header.n_bytes, 0);
        let read = self.read_exact(&mut payload);
        let parsed = read.and_then(|()| step.read(&header, &payload, &self.hello).map_err(|source| self.broke(source)));
        self.payload = payload;
        parsed
    }

    fn read_exact(&mut self, mut room: &mut [u8]) -> Result<(), EnvError> {
        while !room.is_empty() {
            let n = self.read_some(room)?;
            room = room.get_mut(n..).unwrap_or_default();
        }
        Ok(())
    }

    /// At least one byte.
    fn read_some(&mut self, room: &mut [u8]) -> Result<usize, EnvError> {
        loop {
            if !wait_readable(&self.stdout, self.timeout).map_err(EnvError::Pipe)? {
                self.end();
                return Err(EnvError::Silent { seconds: self.timeout.as_secs_f64(), stderr: self.stderr.text() });
            }
            match self.stdout.read(room) {
                Ok(0) => return Err(self.ended()),
                Ok(n) => return Ok(n),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(EnvError::Pipe(error)),
            }
        }
    }

    /// The hello line, byte by byte: what follows it belongs to nobody yet.
    fn read_line(&mut self) -> Result<Vec<u8>, EnvError> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            self.read_some(&mut byte)?;
            match byte {
                [b'\n'] => return Ok(line),
                [byte] => line.push(byte),
            }
            if line.len() > MAX_TEXT_BYTES {
                let what = format!("it is longer than {MAX_TEXT_BYTES} bytes (`{}`)", excerpt(&line));
                return Err(self.broke(ProtocolError::Hello(what)));
            }
        }
    }

    fn broke(&mut self, source: ProtocolError) -> EnvError {
        // Stderr is a pipe of its own and may lag behind.
        self.end();
        let stderr = self.stderr.text();
        match source {
            ProtocolError::Refused(message) => EnvError::Refused { message, stderr },
            source => EnvError::Protocol { source, stderr },
        }
    }

    fn ended(&mut self) -> EnvError {
        let status = self.end();
        EnvError::Ended { status, stderr: self.stderr.text() }
    }

    /// Ends the process if it does not end by itself, and waits for it.
    fn end(&mut self) -> String {
        if let Some(mut stdin) = self.stdin.take() {
            // It may be gone already.
            let _ = stdin.write_all(self.request.quit());
        }
        const STEP: Duration = Duration::from_millis(5);
        let mut status = None;
        for _ in 0..GRACE.as_millis() / STEP.as_millis() {
            status = self.child.try_wait().ok().flatten();
            if status.is_some() {
                break;
            }
            std::thread::sleep(STEP);
        }
        // The group may outlive its leader.
        kill_group(&mut self.child);
        let status = status.or_else(|| self.child.wait().ok());
        status.map_or_else(|| "unknown".to_owned(), |status| status.to_string())
    }
}

impl Drop for EnvProcess {
    fn drop(&mut self) {
        if self.stdin.is_some() {
            self.end();
        }
    }
}

/// True if there is something to read, or the end; false after the timeout.
#[cfg(unix)]
fn wait_readable(pipe: &ChildStdout, timeout: Duration) -> std::io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec::try_from(timeout).ok();
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    loop {
        match poll(&mut fds, timeout.as_ref()) {
            Ok(n) => return Ok(n > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Elsewhere there is no portable way to wait for a pipe: no timeout.
#[cfg(not(unix))]
fn wait_readable(_: &ChildStdout, _: Duration) -> std::io::Result<bool> {
    Ok(true)
}

fn kill_group(child: &mut Child) {
    // Both fail if everything ended by itself.
    #[cfg(unix)]
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _ = child.kill();
}

/// The last lines of a stderr.
#[derive(Debug)]
struct Tail {
    lines: Arc<Mutex<VecDeque<String>>>,
    closed: mpsc::Receiver<()>,
}

impl Tail {
    /// Reads in a thread of its own, so that the process never waits.
    fn follow(mut stderr: ChildStderr) -> Self {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let (at_end, closed) = mpsc::channel();
        let shared = Arc::clone(&lines);
        std::thread::spawn(move || {
            let (mut block, mut line) = ([0; 4096], Vec::new());
            while let Ok(n @ 1..) = stderr.read(&mut block) {
                for &byte in block.get(..n).unwrap_or_default() {
                    if byte == b'\n' {
                        push(&shared, &line);
                        line.clear();
                    } else if line.len() < 1024 {
                        line.push(byte);
                    }
                }
            }
            push(&shared, &line);
            drop(at_end);
        });
        Self { lines, closed }
    }

    /// The lines, each on a line of its own, or nothing.
    fn text(&self) -> String {
        // What was written before the end arrives at once.
        let _ = self.closed.recv_timeout(GRACE);
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            return String::new();
        }
        lines.iter().fold("; its last words:".to_owned(), |text, line| text + "\n" + line)
    }
}

fn push(lines: &Mutex<VecDeque<String>>, line: &[u8]) {
    let line = excerpt(line);
    if line.is_empty() {
        return;
    }
    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    if lines.len() == N_LINES {
        lines.pop_front();
    }
    lines.push_back(line);
}

/// Words of a command line: spaces separate, single and double quotes group, a
/// backslash takes the next character as it is except inside single quotes.
fn split(command: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                word.get_or_insert_default().push(chars.next().ok_or("it ends in a backslash")?)
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_without_a_shell() {
        assert_eq!(split("python 'my env.py' --a=\"b c\" d\\ e").unwrap(), ["python", "my env.py", "--a=b c", "d e"]);
        assert_eq!(split("  '' ").unwrap(), [""]);
        assert!(split("python 'x").is_err());
        assert!(split("python \\").is_err());
    }

    #[test]
    fn what_does_not_start_is_named() {
        let error = EnvProcess::start("no-such-program-here x", GRACE).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `no-such-program-here`");
        assert!(matches!(EnvProcess::start(" ", GRACE), Err(EnvError::Command { .. })));
    }
}
