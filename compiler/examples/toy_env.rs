//! An environment for `qailc eval` without a simulator, and without manners if
//! asked: `toy_env OBSERVATIONS ACTIONS [STEPS] [FAULT [AT]]`.
//!
//! The state is a seeded vector that actions push around; reward is its negative
//! square, success a small one. The faults are what tests of the protocol need:
//! `exit`, `hang`, `print`, `short`, `nan`, `reward`, `error` in request AT (2 by
//! default), and `silent`, `noise`, `version`, `deaf`, `child` at the start.

use std::{
    error::Error,
    io::{Read, Write},
};

struct Toy {
    state: Vec<f32>,
    n_action: usize,
    at: u32,
    steps: u32,
}

impl Toy {
    fn reset(&mut self, seed: u64) {
        self.at = 0;
        for (i, x) in self.state.iter_mut().enumerate() {
            // The finalizer of SplitMix64.
            let z = (seed ^ (i as u64) << 32).wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            *x = ((z >> 40) as f32 / (1u64 << 24) as f32) - 0.5;
        }
    }

    /// Reward and flags.
    fn step(&mut self, action: &[f32]) -> (f64, u8) {
        self.at += 1;
        for (i, x) in self.state.iter_mut().enumerate() {
            let push = action.get(i % self.n_action).copied().unwrap_or(0.0).clamp(-1.0, 1.0);
            *x = 0.97 * *x + 0.005 * push;
        }
        let square: f64 = self.state.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let (success, truncated) = (square < 0.5, self.at == self.steps);
        (-square, u8::from(truncated) << 1 | u8::from(success) << 2)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [observations, actions, rest @ ..] = &args[..] else {
        return Err("usage: toy_env OBSERVATIONS ACTIONS [STEPS] [FAULT [AT]]".into());
    };
    let (n_observation, n_action): (usize, usize) = (observations.parse()?, actions.parse()?);
    let steps: u32 = rest.first().map_or(Ok(50), |text| text.parse())?;
    let fault = rest.get(1).map_or("", String::as_str);
    let fault_at: u64 = rest.get(2).map_or(Ok(2), |text| text.parse())?;
    let (mut stdin, mut stdout) = (std::io::stdin().lock(), std::io::stdout().lock());
    match fault {
        "silent" => sleep(),
        "noise" => println!("Welcome to the simulator!"),
        "deaf" => {
            // It ends before it says anything.
            eprintln!("no licence found");
            return Ok(());
        }
        "child" => {
            // A wrapper that waits for a child that holds the pipes open.
            std::process::Command::new("sleep").arg(steps.to_string()).spawn()?.wait()?;
        }
        _ => {}
    }
    let version = if fault == "version" { 7 } else { 1 };
    let observations = format!(r#"[{{"name": "state", "shape": [{n_observation}]}}]"#);
    let action = format!(r#"{{"name": "push", "shape": [{n_action}]}}"#);
    writeln!(
        stdout,
        r#"{{"qail_env": {version}, "name": "toy", "observations": {observations}, "action": {action}, "max_steps": {steps}, "success": true, "info": ["first"]}}"#
    )?;
    stdout.flush()?;
    let mut toy = Toy { state: vec![0.0; n_observation], n_action, at: 0, steps };
    for request in 0.. {
        let mut header = [0; 8];
        if stdin.read_exact(&mut header).is_err() {
            break;
        }
        let n = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let mut payload = vec![0; n];
        stdin.read_exact(&mut payload)?;
        let (mut reward, flags) = match header[0] {
            b'r' => {
                toy.reset(payload.iter().rev().fold(0, |seed, &byte| seed << 8 | u64::from(byte)));
                (0.0, 0)
            }
            b's' => {
                let numbers = payload.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                toy.step(&numbers.collect::<Vec<_>>())
            }
            _ => break,
        };
        let mut numbers = toy.state.clone();
        numbers.push(toy.state.first().copied().unwrap_or(0.0));
        if request == fault_at {
            match fault {
                "exit" => {
                    eprintln!("simulator: joint 3 exploded");
                    std::process::exit(3);
                }
                "hang" => sleep(),
                "print" => println!("warning: deprecated"),
                "short" => drop(numbers.pop()),
                "nan" => numbers.iter_mut().for_each(|x| *x = f32::NAN),
                "reward" => reward = f64::INFINITY,
                "error" => {
                    let text = "the arm is out of reach";
                    answer(&mut stdout, b'e', 0, 0.0, text.as_bytes())?;
                    continue;
                }
                _ => {}
            }
        }
        let body: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        answer(&mut stdout, b'o', flags, reward, &body)?;
    }
    Ok(())
}

fn answer(out: &mut impl Write, tag: u8, flags: u8, reward: f64, body: &[u8]) -> std::io::Result<()> {
    out.write_all(&[tag, flags, 0, 0])?;
    out.write_all(&(body.len() as u32).to_le_bytes())?;
    out.write_all(&reward.to_le_bytes())?;
    out.write_all(body)?;
    out.flush()
}

fn sleep() -> ! {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }
}
