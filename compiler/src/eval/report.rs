//! Episodes as figures: what a table, a JSON document and a gate are made of.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{
    closed_loop::{Episode, Pair},
    metrics::{ActionError, ErrorSummary},
    protocol::Hello,
    stats::{self, Interval, Paired, Statistic},
};

/// What retention is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// True for the success rate, false for the return.
    pub success: bool,
    /// Mean or median of the returns.
    pub statistic: Statistic,
    /// The return that is worth nothing.
    pub floor: f64,
}

impl Measure {
    fn name(&self) -> &'static str {
        match (self.success, self.statistic) {
            (true, _) => "success rate",
            (false, Statistic::Mean) => "mean return",
            (false, Statistic::Median) => "median return",
        }
    }
}

/// One policy in one environment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Mean of the returns.
    pub return_mean: Option<Interval>,
    /// Median of the returns.
    pub return_median: Option<Interval>,
    /// Standard deviation of the returns.
    pub return_std: f64,
    /// Smallest return.
    pub return_min: f64,
    /// Largest return.
    pub return_max: f64,
    /// Mean number of steps.
    pub steps: f64,
    /// Share of the episodes that the environment ended before the time.
    pub terminated: f64,
    /// Share of successes, Wilson interval.
    pub success: Option<Interval>,
    /// Mean and median number of steps to success, of the successes.
    pub steps_to_success: Option<(f64, f64)>,
    /// Root mean square of the change of actions between steps, mean over episodes.
    pub action_change: f64,
    /// Means of the numbers of the environment.
    pub info: BTreeMap<String, f64>,
}

/// The policy beside another one, by pairs of episodes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Difference of the returns: its mean.
    pub difference_mean: Option<Interval>,
    /// Its median.
    pub difference_median: Option<Interval>,
    /// What retention means here.
    pub measure: Measure,
    /// How much of the other policy is left; none if that is not above the floor.
    pub retention: Option<Interval>,
    /// Distance of the actions on the states that the policy visited.
    pub visited: ErrorSummary,
    /// The same by quarters of the episodes: mean squared error.
    pub visited_quarters: [f64; 4],
}

/// The result of a closed loop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoopReport {
    /// Name of the environment.
    pub environment: String,
    /// First seed.
    pub first_seed: u64,
    /// Episodes asked for.
    pub episodes_asked: u64,
    /// Episodes finished.
    pub episodes: usize,
    /// The policy.
    pub policy: Figures,
    /// What it is compared with.
    pub against: Option<Figures>,
    /// Both.
    pub comparison: Option<Comparison>,
}

/// Outcome of a gate on retention.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// What was asked for.
    pub min_retention: f64,
    /// True if the lower end of the interval reaches it.
    pub passed: bool,
    /// Episodes that would be enough if the estimate stays; none if no number is.
    pub episodes_needed: Option<u64>,
}

impl LoopReport {
    /// Sums up pairs. `seed` is that of the bootstrap.
    pub fn new(hello: &Hello, first_seed: u64, asked: u64, pairs: &[Pair], measure: Measure) -> Self {
        let policy: Vec<&Episode> = pairs.iter().map(|pair| &pair.policy).collect();
        let against: Vec<&Episode> = pairs.iter().filter_map(|pair| pair.against.as_ref()).collect();
        let both = !against.is_empty() && against.len() == policy.len();
        Self {
            environment: hello.name.clone(),
            first_seed,
            episodes_asked: asked,
            episodes: pairs.len(),
            policy: figures(&policy, hello, first_seed),
            against: both.then(|| figures(&against, hello, first_seed)),
            comparison: both.then(|| compare(&policy, &against, measure, first_seed)),
        }
    }

    /// Holds the lower end of the retention to a threshold. None without retention.
    pub fn gate(&self, min_retention: f64, pairs: &[Pair]) -> Option<Gate> {
        let comparison = self.comparison.as_ref()?;
        let retention = comparison.retention?;
        let counts = paired(pairs.iter().filter_map(|pair| Some((&pair.policy, pair.against.as_ref()?))));
        let lower_at = |k: f64| {
            if comparison.measure.success {
                counts.times(k).retention().map_or(0.0, |interval| interval.lower)
            } else {
                retention.estimate - (retention.estimate - retention.lower) / k.sqrt()
            }
        };
        let passed = retention.lower >= min_retention;
        let needed = || stats::episodes_needed(self.episodes, retention.estimate, min_retention, lower_at);
        Some(Gate { min_retention, passed, episodes_needed: if passed { None } else { needed() } })
    }

    /// The report as a table for a terminal.
    pub fn render(&self) -> String {
        let last = self.first_seed.saturating_add(self.episodes_asked).saturating_sub(1);
        let mut text =
            format!("{}: {}, seeds {} to {last}", self.environment, plural(self.episodes, "episode"), self.first_seed);
        if (self.episodes as u64) < self.episodes_asked {
            let _ = write!(text, "; PARTIAL: {} were asked for", self.episodes_asked);
        }
        text.push('\n');
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        let mut header = vec!["", "policy"];
        header.extend(self.against.as_ref().map(|_| "against"));
        table.set_header(header);
        let (left, right) = (rows(&self.policy), self.against.as_ref().map(rows));
        for (i, (name, value)) in left.into_iter().enumerate() {
            let other = right.as_ref().and_then(|rows| rows.get(i)).map(|(_, value)| value.clone());
            table.add_row([Some(name), Some(value), other].into_iter().flatten());
        }
        let _ = writeln!(text, "{table}");
        if let Some(comparison) = &self.comparison {
            comparison.render(&mut text);
        }
        text
    }
}

impl Comparison {
    fn render(&self, text: &mut String) {
        // Writing to a `String` cannot fail.
        let (mean, median) = (interval(self.difference_mean), interval(self.difference_median));
        let _ = writeln!(text, "return, policy - against, by pairs: mean {mean}, median {median}");
        match self.retention {
            Some(retention) => {
                let _ = writeln!(text, "retention of the {}: {}", self.measure.name(), interval(Some(retention)));
            }
            None => {
                let _ =
                    writeln!(text, "retention of the {}: none, the other policy is worth nothing", self.measure.name());
            }
        }
        let [a, b, c, d] = self.visited_quarters;
        let _ = writeln!(
            text,
            "actions on the states that the policy visited: mse {:.3e}, max {:.3e}, sign flips {:.2} %; \
             by quarters of the episodes {a:.2e} {b:.2e} {c:.2e} {d:.2e}",
            self.visited.mse,
            self.visited.max,
            100.0 * self.visited.sign_flips,
        );
    }
}

fn figures(episodes: &[&Episode], hello: &Hello, seed: u64) -> Figures {
    let mut scores: Vec<f64> = episodes.iter().map(|episode| episode.score).collect();
    let n = episodes.len();
    let of = |f: &dyn Fn(&Episode) -> f64| stats::mean(&episodes.iter().map(|e| f(e)).collect::<Vec<_>>());
    let count = |f: &dyn Fn(&Episode) -> bool| episodes.iter().filter(|episode| f(episode)).count() as f64;
    let mut to_success: Vec<f64> = episodes.iter().filter_map(|e| e.steps_to_success).map(f64::from).collect();
    let info = hello.info.iter().enumerate();
    Figures {
        return_mean: stats::bootstrap(&scores, Statistic::Mean, seed),
        return_median: stats::bootstrap(&scores, Statistic::Median, seed),
        return_std: stats::std_dev(&scores),
        return_min: scores.iter().copied().reduce(f64::min).unwrap_or(0.0),
        return_max: scores.iter_mut().map(|x| *x).reduce(f64::max).unwrap_or(0.0),
        steps: of(&|episode| episode.steps.into()),
        terminated: count(&|episode| episode.terminated) / n.max(1) as f64,
        success: hello.success.then(|| stats::wilson(count(&|episode| episode.success == Some(true)), n as f64)),
        steps_to_success: (!to_success.is_empty()).then(|| (stats::mean(&to_success), stats::median(&mut to_success))),
        action_change: of(&|episode| episode.action_change),
        info: info.map(|(i, name)| (name.clone(), of(&|e| e.info.get(i).copied().unwrap_or(0.0)))).collect(),
    }
}

fn compare(policy: &[&Episode], against: &[&Episode], measure: Measure, seed: u64) -> Comparison {
    let scores = |episodes: &[&Episode]| -> Vec<f64> { episodes.iter().map(|episode| episode.score).collect() };
    let (a, b) = (scores(policy), scores(against));
    let retention = if measure.success {
        paired(policy.iter().copied().zip(against.iter().copied())).retention()
    } else {
        stats::bootstrap_retention(&a, &b, measure.floor, measure.statistic, seed)
    };
    let mut quarters = [ActionError::default(); 4];
    for error in policy.iter().filter_map(|episode| episode.error.as_ref()) {
        quarters.iter_mut().zip(error).for_each(|(sum, error)| sum.merge(error));
    }
    let mut all = ActionError::default();
    quarters.iter().for_each(|quarter| all.merge(quarter));
    Comparison {
        difference_mean: stats::bootstrap_difference(&a, &b, Statistic::Mean, seed),
        difference_median: stats::bootstrap_difference(&a, &b, Statistic::Median, seed),
        measure,
        retention,
        visited: (&all).into(),
        visited_quarters: quarters.map(|quarter| quarter.mse()),
    }
}

fn paired<'a>(pairs: impl Iterator<Item = (&'a Episode, &'a Episode)>) -> Paired {
    let mut counts = Paired::default();
    for (a, b) in pairs {
        let done = |episode: &Episode| episode.success == Some(true);
        *match (done(a), done(b)) {
            (true, true) => &mut counts.both,
            (true, false) => &mut counts.only_a,
            (false, true) => &mut counts.only_b,
            (false, false) => &mut counts.neither,
        } += 1.0;
    }
    counts
}

fn rows(figures: &Figures) -> Vec<(String, String)> {
    let mut rows = vec![
        ("return, mean".to_owned(), interval(figures.return_mean)),
        ("return, median".to_owned(), interval(figures.return_median)),
        ("return, std".to_owned(), figure(figures.return_std)),
        ("return, min .. max".to_owned(), format!("{} .. {}", figure(figures.return_min), figure(figures.return_max))),
        ("steps".to_owned(), figure(figures.steps)),
        ("terminated".to_owned(), format!("{:.1} %", 100.0 * figures.terminated)),
    ];
    if figures.success.is_some() {
        let steps = figures.steps_to_success;
        let steps = steps.map_or("-".to_owned(), |(mean, median)| format!("{mean:.1}, median {median:.1}"));
        rows.push(("success".to_owned(), interval(figures.success)));
        rows.push(("steps to success".to_owned(), steps));
    }
    rows.push(("action change, rms".to_owned(), figure(figures.action_change)));
    rows.extend(figures.info.iter().map(|(name, &value)| (format!("{name}, mean"), figure(value))));
    rows
}

fn interval(interval: Option<Interval>) -> String {
    interval.map_or("-".to_owned(), |Interval { estimate, lower, upper }| {
        format!("{} [{}, {}]", figure(estimate), figure(lower), figure(upper))
    })
}

/// `1 episode`, `2 episodes`.
pub fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Four digits, or all before the point.
fn figure(x: f64) -> String {
    let decimals = match x.abs() {
        1000.0.. => 0,
        100.0.. => 1,
        10.0.. => 2,
        _ => 3,
    };
    // "-0.000" is no figure.
    let text = format!("{x:.decimals$}");
    if text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.')) { text.replace('-', "") } else { text }
}

/// One line an episode: comma-separated values.
pub fn csv(pairs: &[Pair], hello: &Hello) -> String {
    let columns = ["return", "steps", "terminated", "success", "steps_to_success", "action_change"];
    let mut header = vec!["seed".to_owned()];
    let sides = if pairs.iter().any(|pair| pair.against.is_some()) { &["", "against_"][..] } else { &[""][..] };
    for side in sides {
        header.extend(columns.iter().map(|column| format!("{side}{column}")));
        header.extend(hello.info.iter().map(|name| format!("{side}{}", name.replace([',', '"', '\n'], "_"))));
    }
    let mut text = header.join(",") + "\n";
    for pair in pairs {
        let mut fields = vec![pair.seed.to_string()];
        for episode in std::iter::once(&pair.policy).chain(&pair.against) {
            let known = |value: Option<String>| value.unwrap_or_default();
            fields.extend([
                episode.score.to_string(),
                episode.steps.to_string(),
                u8::from(episode.terminated).to_string(),
                known(episode.success.map(|success| u8::from(success).to_string())),
                known(episode.steps_to_success.map(|steps| steps.to_string())),
                episode.action_change.to_string(),
            ]);
            fields.extend(episode.info.iter().map(f64::to_string));
        }
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    text
}
