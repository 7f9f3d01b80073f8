//! Episodes in an environment: the policy, and what it is compared with, on the
//! same seeds.
//!
//! Several workers take seeds in turn, each with an environment and sessions of
//! its own. Results are sorted by seed, so they do not depend on the number of
//! workers. When something fails, everybody stops and what was finished stays.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
    mpsc,
};

use serde::Serialize;

use super::{
    actor::{ActError, Actor, WiringError},
    metrics::ActionError,
    process::{EnvError, EnvProcess},
    protocol::{Hello, Step},
};

/// What episodes are run in.
pub trait Environment: Send {
    /// What it is.
    fn hello(&self) -> &Hello;
    /// Begins an episode.
    ///
    /// # Errors
    /// As of the process behind it.
    fn reset(&mut self, seed: u64, step: &mut Step) -> Result<(), EnvError>;
    /// Acts.
    ///
    /// # Errors
    /// As of the process behind it.
    fn step(&mut self, action: &[f32], step: &mut Step) -> Result<(), EnvError>;
}

impl Environment for EnvProcess {
    fn hello(&self) -> &Hello {
        Self::hello(self)
    }

    fn reset(&mut self, seed: u64, step: &mut Step) -> Result<(), EnvError> {
        Self::reset(self, seed, step)
    }

    fn step(&mut self, action: &[f32], step: &mut Step) -> Result<(), EnvError> {
        Self::step(self, action, step)
    }
}

/// Why a worker stopped.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The environment does not start.
    #[error(transparent)]
    Start(EnvError),
    /// The environment failed in an episode.
    #[error("seed {seed}, step {step}")]
    Env {
        /// The episode.
        seed: u64,
        /// Steps before it.
        step: u32,
        /// Why.
        #[source]
        source: EnvError,
    },
    /// There is no action.
    #[error("seed {seed}, step {step}")]
    Act {
        /// The episode.
        seed: u64,
        /// Steps before it.
        step: u32,
        /// Why.
        #[source]
        source: ActError,
    },
    /// The policy does not fit the environment.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// The policy does not load.
    #[error(transparent)]
    Load(#[from] qail_runtime::RuntimeError),
    /// A worker is gone.
    #[error("internal error: a worker panicked")]
    Worker,
}

/// One episode.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Episode {
    /// Sum of the rewards.
    #[serde(rename = "return")]
    pub score: f64,
    /// Steps.
    pub steps: u32,
    /// True if the environment ended it, not the time.
    pub terminated: bool,
    /// Whether any step was a success; none if the environment cannot tell.
    pub success: Option<bool>,
    /// Steps up to the first success.
    pub steps_to_success: Option<u32>,
    /// Root mean square of the change of the actions from step to step.
    pub action_change: f64,
    /// Means over the steps of the numbers of the environment.
    pub info: Vec<f64>,
    /// Distance to the other policy's actions on the states of this episode, by
    /// quarters of it; not serialized.
    #[serde(skip)]
    pub error: Option<[ActionError; 4]>,
}

/// The same seed, twice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Seed of both.
    pub seed: u64,
    /// The policy.
    pub policy: Episode,
    /// What it is compared with.
    pub against: Option<Episode>,
}

/// What a worker owns.
pub struct Worker {
    /// The environment.
    pub env: Box<dyn Environment>,
    /// The policy.
    pub policy: Box<dyn Actor>,
    /// What it is compared with.
    pub against: Option<Box<dyn Actor>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Finished episodes by seed.
    pub pairs: Vec<Pair>,
    /// The environment, if it started.
    pub hello: Option<Hello>,
    /// Why not all episodes are there.
    pub failure: Option<LoopError>,
}

/// Runs `n_episodes` episodes, seeds from `first_seed` on, with `n_workers` workers.
pub fn run(
    first_seed: u64,
    n_episodes: u64,
    n_workers: usize,
    make_worker: &(dyn Fn() -> Result<Worker, LoopError> + Sync),
    on_episode: &mut dyn FnMut(&Pair),
) -> Outcome {
    let shared = Shared { taken: AtomicU64::new(0), stop: AtomicBool::new(false), hello: Mutex::new(None) };
    let (sender, results) = mpsc::channel();
    let mut pairs = Vec::new();
    let mut failure = None;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_workers.max(1))
            .map(|_| {
                let (shared, sender) = (&shared, sender.clone());
                scope.spawn(move || {
                    let done = work(shared, first_seed, n_episodes, make_worker, &mut |pair| {
                        // The receiver lives as long as this scope.
                        let _ = sender.send(pair);
                    });
                    if done.is_err() {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        drop(sender);
        for pair in results {
            on_episode(&pair);
            pairs.push(pair);
        }
        for thread in threads {
            let done = thread.join().unwrap_or(Err(LoopError::Worker));
            failure = failure.take().or(done.err());
        }
    });
    pairs.sort_by_key(|pair: &Pair| pair.seed);
    Outcome { pairs, hello: shared.hello.into_inner().unwrap_or_else(PoisonError::into_inner), failure }
}

/// What workers share.
struct Shared {
    taken: AtomicU64,
    stop: AtomicBool,
    hello: Mutex<Option<Hello>>,
}

fn work(
    shared: &Shared,
    first_seed: u64,
    n_episodes: u64,
    make_worker: &(dyn Fn() -> Result<Worker, LoopError> + Sync),
    on_pair: &mut dyn FnMut(Pair),
) -> Result<(), LoopError> {
    let mut worker = make_worker()?;
    shared.hello.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| worker.env.hello().clone());
    loop {
        let index = shared.taken.fetch_add(1, Ordering::Relaxed);
        if index >= n_episodes {
            return Ok(());
        }
        let seed = first_seed.saturating_add(index);
        let Worker { env, policy, against } = &mut worker;
        let judge = against.as_deref_mut();
        let Some(policy) = rollout(&mut **env, &mut **policy, judge, seed, &shared.stop)? else { return Ok(()) };
        let against = match against {
            Some(against) => match rollout(&mut **env, &mut **against, None, seed, &shared.stop)? {
                Some(episode) => Some(episode),
                None => return Ok(()),
            },
            None => None,
        };
        on_pair(Pair { seed, policy, against });
    }
}

/// One episode; `judge` is asked for its action in every state, and not obeyed.
/// Both begin it without memory, so two policies of chunks compute theirs in the
/// same states.
/// None if `stop` was set before the end.
///
/// # Errors
/// If the environment or the actor fails.
pub fn rollout(
    env: &mut dyn Environment,
    actor: &mut dyn Actor,
    mut judge: Option<&mut (dyn Actor + 'static)>,
    seed: u64,
    stop: &AtomicBool,
) -> Result<Option<Episode>, LoopError> {
    let (n_action, max_steps) = (env.hello().action.elements(), env.hello().max_steps);
    let mut now = Step::default();
    let [mut action, mut last, mut wanted] = [(); 3].map(|()| vec![0.0; n_action]);
    let mut errors = Vec::new();
    let mut episode = Episode {
        score: 0.0,
        steps: 0,
        terminated: false,
        success: env.hello().success.then_some(false),
        steps_to_success: None,
        action_change: 0.0,
        info: vec![0.0; env.hello().info.len()],
        error: None,
    };
    env.reset(seed, &mut now).map_err(|source| LoopError::Env { seed, step: 0, source })?;
    let began = |source| LoopError::Act { seed, step: 0, source };
    actor.reset(seed).map_err(began)?;
    if let Some(judge) = &mut judge {
        judge.reset(seed).map_err(began)?;
    }
    while episode.steps < max_steps && !now.terminated && !now.truncated {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let step = episode.steps;
        std::mem::swap(&mut action, &mut last);
        actor.act(&now.observation, &mut action).map_err(|source| LoopError::Act { seed, step, source })?;
        if let Some(judge) = &mut judge {
            judge.act(&now.observation, &mut wanted).map_err(|source| LoopError::Act { seed, step, source })?;
            let mut error = ActionError::default();
            error.add(&action, &wanted);
            errors.push(error);
        }
        if step > 0 {
            let change = action.iter().zip(&last).map(|(a, b)| f64::from(a - b) * f64::from(a - b));
            episode.action_change += change.sum::<f64>();
        }
        env.step(&action, &mut now).map_err(|source| LoopError::Env { seed, step, source })?;
        episode.steps += 1;
        episode.score += now.reward;
        episode.info.iter_mut().zip(&now.info).for_each(|(sum, &x)| *sum += f64::from(x));
        if now.success && episode.success == Some(false) {
            episode.success = Some(true);
            episode.steps_to_success = Some(episode.steps);
        }
    }
    episode.terminated = now.terminated;
    let steps = f64::from(episode.steps.max(1));
    episode.action_change = (episode.action_change / ((steps - 1.0).max(1.0) * n_action as f64)).sqrt();
    episode.info.iter_mut().for_each(|sum| *sum /= steps);
    episode.error = judge.is_some().then(|| quarters(&errors));
    Ok(Some(episode))
}

/// Errors of the steps of an episode, joined by quarters.
fn quarters(errors: &[ActionError]) -> [ActionError; 4] {
    let mut joined = [ActionError::default(); 4];
    for (i, error) in errors.iter().enumerate() {
        if let Some(quarter) = joined.get_mut(4 * i / errors.len().max(1)) {
            quarter.merge(error);
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::protocol::Port;

    /// Reward is the action; the observation counts steps; `fails_at` ends it.
    struct Counter {
        hello: Hello,
        at: u32,
        seed: u64,
        fails_at: Option<u64>,
    }

    impl Counter {
        fn new(max_steps: u32, fails_at: Option<u64>) -> Self {
            let port = |name: &str| Port { name: name.to_owned(), shape: vec![1] };
            let (name, info) = ("counter".to_owned(), vec!["twice".to_owned()]);
            let hello =
                Hello { name, observations: vec![port("obs")], action: port("action"), max_steps, success: true, info };
            Self { hello, at: 0, seed: 0, fails_at }
        }
    }

    impl Environment for Counter {
        fn hello(&self) -> &Hello {
            &self.hello
        }

        fn reset(&mut self, seed: u64, step: &mut Step) -> Result<(), EnvError> {
            (self.at, self.seed) = (0, seed);
            *step = Step { observation: vec![0.0], ..Step::default() };
            Ok(())
        }

        fn step(&mut self, action: &[f32], step: &mut Step) -> Result<(), EnvError> {
            if self.fails_at == Some(self.seed) {
                return Err(EnvError::Pipe(std::io::ErrorKind::BrokenPipe.into()));
            }
            self.at += 1;
            let success = u64::from(self.at) == 3 + self.seed;
            let info = vec![2.0 * self.at as f32];
            *step =
                Step { observation: vec![self.at as f32], reward: action[0].into(), success, info, ..Step::default() };
            Ok(())
        }
    }

    /// Gives the number of its steps in the episode; it has memory.
    struct Remembers(f32);

    impl Actor for Remembers {
        fn reset(&mut self, _: u64) -> Result<(), ActError> {
            self.0 = 0.0;
            Ok(())
        }

        fn act(&mut self, _: &[f32], action: &mut [f32]) -> Result<(), ActError> {
            action[0] = self.0;
            self.0 += 1.0;
            Ok(())
        }
    }

    #[test]
    fn every_episode_begins_without_memory_for_actor_and_judge() {
        let (mut env, mut actor, mut judge) = (Counter::new(5, None), Remembers(7.0), Remembers(9.0));
        for seed in 0..2 {
            let stop = AtomicBool::new(false);
            let episode = rollout(&mut env, &mut actor, Some(&mut judge), seed, &stop).unwrap().unwrap();
            assert_eq!(episode.score, 10.0);
            assert!(episode.error.unwrap().iter().all(|error| error.max() == 0.0));
        }
    }

    struct Times(f32);

    impl Actor for Times {
        fn act(&mut self, observation: &[f32], action: &mut [f32]) -> Result<(), ActError> {
            action[0] = self.0 * observation[0];
            Ok(())
        }
    }

    fn run_counter(n_workers: usize, fails_at: Option<u64>) -> Outcome {
        let make = || {
            Ok(Worker {
                env: Box::new(Counter::new(5, fails_at)),
                policy: Box::new(Times(1.0)),
                against: Some(Box::new(Times(2.0))),
            })
        };
        run(0, 8, n_workers, &make, &mut |_| {})
    }

    #[test]
    fn an_episode_is_summed_up() {
        let outcome = run_counter(1, None);
        let pair = &outcome.pairs[1];
        assert_eq!((pair.policy.score, pair.against.as_ref().unwrap().score), (10.0, 20.0));
        assert_eq!((pair.policy.steps, pair.policy.terminated), (5, false));
        assert_eq!((pair.policy.success, pair.policy.steps_to_success), (Some(true), Some(4)));
        assert_eq!((pair.policy.info[0], pair.policy.action_change), (6.0, 1.0));
        // The other policy would have done twice as much: errors 0, 1, 2, 3, 4.
        let error = pair.policy.error.unwrap();
        assert_eq!(error.iter().map(ActionError::n_elements).collect::<Vec<_>>(), [2, 1, 1, 1]);
        assert_eq!((error[0].mse(), error[3].mse()), (0.5, 16.0));
        assert_eq!(outcome.pairs[7].policy.success, Some(false));
    }

    #[test]
    fn the_number_of_workers_does_not_matter() {
        assert_eq!(run_counter(1, None).pairs, run_counter(3, None).pairs);
    }

    #[test]
    fn what_was_finished_before_a_failure_stays() {
        let outcome = run_counter(1, Some(5));
        assert_eq!(outcome.pairs.len(), 5);
        assert_eq!(outcome.failure.unwrap().to_string(), "seed 5, step 0");
    }
}
