//! The bytes between `qailc eval` and an environment process, version 1.
//!
//! `fixtures/envs/README.md` is the specification. Everything here is pure:
//! bytes in, values out, and nothing that a process says is trusted.

use serde::Deserialize;

/// The version that is spoken here.
pub const VERSION: u32 = 1;
/// Length of the header of a request.
pub const REQUEST_BYTES: usize = 8;
/// Length of the header of an answer.
pub const ANSWER_BYTES: usize = 16;
/// Longest hello line, and longest error text.
pub const MAX_TEXT_BYTES: usize = 1 << 16;
/// Most elements of an action. A request then fits a pipe, so that writing one
/// never waits for a process that does not read.
pub const MAX_ACTION: usize = 4096;
/// Most elements of all observations and info numbers together.
pub const MAX_OBSERVATION: usize = 1 << 24;
/// Most steps of an episode.
pub const MAX_STEPS: u32 = 10_000_000;

/// What an environment is, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    /// Name of the environment.
    pub name: String,
    /// Observations, in the order of their bytes.
    pub observations: Vec<Port>,
    /// The action.
    pub action: Port,
    /// Steps of the longest episode.
    pub max_steps: u32,
    /// True if the environment can tell success.
    pub success: bool,
    /// Names of the numbers that come with every step.
    pub info: Vec<String>,
}

/// A named array.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Extents without a batch axis.
    pub shape: Vec<usize>,
}

impl Port {
    /// Number of elements; saturates.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |n, &extent| n.saturating_mul(extent))
    }
}

#[derive(Deserialize)]
struct RawHello {
    qail_env: u32,
    name: String,
    observations: Vec<Port>,
    action: Port,
    max_steps: u32,
    #[serde(default)]
    success: bool,
    #[serde(default)]
    info: Vec<String>,
}

/// Bytes that are not the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The first line is not a hello.
    #[error("its first line is not a hello: {0}")]
    Hello(String),
    /// Another version.
    #[error("it speaks version {found} of the protocol, and this is version {VERSION}")]
    Version {
        /// The version that it speaks.
        found: u32,
    },
    /// A hello with an extent or count out of range.
    #[error("its hello is out of range: {0}")]
    Range(String),
    /// An answer with an unknown tag: often text that a library printed to stdout.
    #[error("it answered with the bytes {0}, which is no answer; does it print to stdout?")]
    Tag(String),
    /// An answer of another length than the hello promised.
    #[error("it answered with {found} bytes, and its hello promised {expected}")]
    Length {
        /// Bytes that the hello promised.
        expected: usize,
        /// Bytes that the header announces.
        found: usize,
    },
    /// A number that is none.
    #[error("{what} is {value}")]
    NotFinite {
        /// `element 3 of observation `obs``, `the reward`.
        what: String,
        /// The number.
        value: String,
    },
    /// The environment says that it cannot.
    #[error("it says: {0}")]
    Refused(String),
}

impl Hello {
    /// Reads the hello line.
    ///
    /// # Errors
    /// Anything but a hello of this version with sane extents.
    pub fn parse(line: &[u8]) -> Result<Self, ProtocolError> {
        let raw: RawHello = serde_json::from_slice(line)
            .map_err(|error| ProtocolError::Hello(format!("{error} (`{}`)", excerpt(line))))?;
        if raw.qail_env != VERSION {
            return Err(ProtocolError::Version { found: raw.qail_env });
        }
        let RawHello { name, observations, action, max_steps, success, info, .. } = raw;
        let hello = Self { name, observations, action, max_steps, success, info };
        let refuse = |what: String| Err(ProtocolError::Range(what));
        if !(1..=MAX_ACTION).contains(&hello.action.elements()) {
            return refuse(format!("an action has 1 to {MAX_ACTION} elements, found {:?}", hello.action.shape));
        }
        if hello.observations.is_empty() || hello.observations.iter().any(|port| port.elements() == 0) {
            return refuse("every observation has elements, and there is one at least".to_owned());
        }
        if hello.answer_elements() > MAX_OBSERVATION {
            return refuse(format!("at most {MAX_OBSERVATION} elements, found {}", hello.answer_elements()));
        }
        if !(1..=MAX_STEPS).contains(&hello.max_steps) {
            return refuse(format!("max_steps is 1 to {MAX_STEPS}, found {}", hello.max_steps));
        }
        Ok(hello)
    }

    /// Elements of all observations.
    pub fn observation_elements(&self) -> usize {
        self.observations.iter().fold(0, |n, port| n.saturating_add(port.elements()))
    }

    fn answer_elements(&self) -> usize {
        self.observation_elements().saturating_add(self.info.len())
    }

    /// Bytes behind the header of every answer but an error.
    pub fn answer_bytes(&self) -> usize {
        4 * self.answer_elements()
    }
}

/// A request, ready to be written.
#[derive(Clone, Debug, Default)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Begins an episode.
    pub fn reset(&mut self, seed: u64) -> &[u8] {
        self.begin(b'r', 8);
        self.bytes.extend(seed.to_le_bytes());
        &self.bytes
    }

    /// One step. The action has at most [`MAX_ACTION`] elements.
    pub fn step(&mut self, action: &[f32]) -> &[u8] {
        self.begin(b's', 4 * action.len());
        self.bytes.extend(action.iter().flat_map(|x| x.to_le_bytes()));
        &self.bytes
    }

    /// Asks the process to end.
    pub fn quit(&mut self) -> &[u8] {
        self.begin(b'q', 0);
        &self.bytes
    }

    /// The request that was made last.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn begin(&mut self, tag: u8, n_bytes: usize) {
        self.bytes.clear();
        self.bytes.extend([tag, 0, 0, 0]);
        self.bytes.extend((n_bytes as u32).to_le_bytes());
    }
}

/// The header of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    /// Terminated, truncated, success.
    pub flags: u8,
    /// Reward of the step.
    pub reward: f64,
    /// Bytes that follow.
    pub n_bytes: usize,
    /// True if they are an error text.
    pub refused: bool,
}

impl Header {
    /// Reads a header; what it announces fits the hello.
    ///
    /// # Errors
    /// An unknown tag or a length that the hello did not promise.
    pub fn parse(bytes: &[u8; ANSWER_BYTES], hello: &Hello) -> Result<Self, ProtocolError> {
        let [tag, flags, z0, z1, n0, n1, n2, n3, reward @ ..] = *bytes;
        let n_bytes = u32::from_le_bytes([n0, n1, n2, n3]) as usize;
        let header = |refused| Self { flags, reward: f64::from_le_bytes(reward), n_bytes, refused };
        match (tag, z0, z1) {
            (b'o', 0, 0) if n_bytes == hello.answer_bytes() => Ok(header(false)),
            (b'o', 0, 0) => Err(ProtocolError::Length { expected: hello.answer_bytes(), found: n_bytes }),
            (b'e', 0, 0) if n_bytes <= MAX_TEXT_BYTES => Ok(header(true)),
            _ => Err(ProtocolError::Tag(format!("`{}`", excerpt(bytes)))),
        }
    }
}

/// What a step leads to. The buffers are reused from step to step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// All observations, one behind the other.
    pub observation: Vec<f32>,
    /// Reward.
    pub reward: f64,
    /// The task is over.
    pub terminated: bool,
    /// Time is up.
    pub truncated: bool,
    /// The task is done.
    pub success: bool,
    /// Numbers that go with the step.
    pub info: Vec<f32>,
}

impl Step {
    /// Reads what follows a header.
    ///
    /// # Errors
    /// Numbers that are not finite, and what the environment refuses.
    pub fn read(&mut self, header: &Header, payload: &[u8], hello: &Hello) -> Result<(), ProtocolError> {
        if header.refused {
            return Err(ProtocolError::Refused(excerpt(payload)));
        }
        let numbers = payload.chunks_exact(4).filter_map(|b| b.first_chunk().map(|&b| f32::from_le_bytes(b)));
        self.observation.clear();
        self.observation.extend(numbers.clone().take(hello.observation_elements()));
        self.info.clear();
        self.info.extend(numbers.skip(hello.observation_elements()));
        self.reward = header.reward;
        let flag = |bit: u8| header.flags & bit != 0;
        (self.terminated, self.truncated, self.success) = (flag(1), flag(2), flag(4));
        if let Some(at) = self.observation.iter().position(|x| !x.is_finite()) {
            let (mut rest, mut what) = (at, String::new());
            for port in &hello.observations {
                if rest < port.elements() {
                    what = format!("element {rest} of observation `{}`", port.name);
                    break;
                }
                rest -= port.elements();
            }
            let value = self.observation.get(at).map(f32::to_string).unwrap_or_default();
            return Err(ProtocolError::NotFinite { what, value });
        }
        if !self.reward.is_finite() {
            let (what, value) = ("the reward".to_owned(), self.reward.to_string());
            return Err(ProtocolError::NotFinite { what, value });
        }
        let info = self.info.iter().zip(&hello.info).find(|(x, _)| !x.is_finite());
        match info {
            Some((x, name)) => Err(ProtocolError::NotFinite { what: format!("info `{name}`"), value: x.to_string() }),
            None => Ok(()),
        }
    }
}

/// The beginning of bytes that ought to be text, on one line, without control characters.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 400;
    let text = String::from_utf8_lossy(bytes.get(..SHOWN.min(bytes.len())).unwrap_or_default()).into_owned();
    let clean: String = text.trim().chars().map(|c| if c.is_control() { '.' } else { c }).collect();
    if bytes.len() > SHOWN { clean + ".." } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = r#"{"qail_env": 1, "name": "toy", "observations": [{"name": "a", "shape": [2]}, {"name": "b", "shape": [1]}],
        "action": {"name": "action", "shape": [1]}, "max_steps": 9, "info": ["speed"]}"#;

    fn hello() -> Hello {
        Hello::parse(HELLO.as_bytes()).unwrap()
    }

    fn answer(tag: u8, flags: u8, numbers: &[f32]) -> (Vec<u8>, [u8; ANSWER_BYTES]) {
        let payload: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut header = [0; ANSWER_BYTES];
        (header[0], header[1]) = (tag, flags);
        header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[8..].copy_from_slice(&1.5f64.to_le_bytes());
        (payload, header)
    }

    #[test]
    fn a_hello_has_its_shapes() {
        let hello = hello();
        assert_eq!((hello.observation_elements(), hello.answer_bytes(), hello.success), (3, 16, false));
    }

    #[test]
    fn a_step_is_read_as_it_was_written() {
        let (payload, header) = answer(b'o', 5, &[1.0, 2.0, 3.0, 4.0]);
        let header = Header::parse(&header, &hello()).unwrap();
        let mut step = Step::default();
        step.read(&header, &payload, &hello()).unwrap();
        assert_eq!(
            (step.observation.as_slice(), step.info.as_slice(), step.reward),
            (&[1.0, 2.0, 3.0][..], &[4.0][..], 1.5)
        );
        assert_eq!((step.terminated, step.truncated, step.success), (true, false, true));
        assert_eq!(Request::default().step(&[1.0]), [b's', 0, 0, 0, 4, 0, 0, 0, 0, 0, 128, 63]);
        assert_eq!(Request::default().reset(258), [b'r', 0, 0, 0, 8, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn hostile_hellos_are_refused() {
        let replaced = |from: &str, to: &str| Hello::parse(HELLO.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert!(replaced("{\"qail_env\"", "Loading...{\"qail_env\"").contains("Loading..."));
        assert_eq!(
            replaced("\"qail_env\": 1", "\"qail_env\": 2"),
            "it speaks version 2 of the protocol, and this is version 1"
        );
        assert!(replaced("\"shape\": [2]", "\"shape\": [0]").contains("every observation has elements"));
        assert!(replaced("\"shape\": [2]", "\"shape\": [4294967296, 4294967296, 16]").contains("at most 16777216"));
        assert!(replaced("\"action\", \"shape\": [1]", "\"action\", \"shape\": [5000]").contains("1 to 4096"));
        assert!(replaced("\"max_steps\": 9", "\"max_steps\": 0").contains("max_steps is 1 to"));
        assert!(replaced("\"max_steps\": 9", "\"max_steps\": -1").contains("not a hello"));
        assert!(Hello::parse(&[0xff, 0xfe]).is_err());
    }

    #[test]
    fn hostile_answers_are_refused() {
        let hello = hello();
        let header = |tag, n: usize| Header::parse(&answer(tag, 0, &vec![0.0; n]).1, &hello);
        assert_eq!(header(b'o', 3), Err(ProtocolError::Length { expected: 16, found: 12 }));
        assert!(matches!(header(b'x', 4), Err(ProtocolError::Tag(_))));
        assert!(
            matches!(Header::parse(b"Warning: no GPU\n", &hello), Err(ProtocolError::Tag(text)) if text.contains("Warning"))
        );
        for (numbers, what) in [
            ([0.0, 0.0, f32::NAN, 0.0], "element 0 of observation `b` is NaN"),
            ([0.0, f32::INFINITY, 0.0, 0.0], "element 1 of observation `a` is inf"),
            ([0.0, 0.0, 0.0, f32::NAN], "info `speed` is NaN"),
        ] {
            let (payload, header) = answer(b'o', 0, &numbers);
            let header = Header::parse(&header, &hello).unwrap();
            assert_eq!(Step::default().read(&header, &payload, &hello).unwrap_err().to_string(), what);
        }
    }

    #[test]
    fn a_refusal_is_repeated_without_control_characters() {
        let header = Header { flags: 0, reward: 0.0, n_bytes: 9, refused: true };
        let error = Step::default().read(&header, b"no\x1b[31m it", &hello()).unwrap_err();
        assert_eq!(error.to_string(), "it says: no.[31m it");
    }
}
