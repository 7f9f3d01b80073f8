//! What a policy is worth: on recorded states, and in a simulator.
//!
//! ```text
//! open_loop    demonstrations -> policy, teacher -> how far the actions are
//! closed_loop  environment <-> policy, teacher, on the same seeds -> returns
//! stats        returns -> intervals;  report: tables, JSON, gates
//! ```
//! [`protocol`] and [`process`] talk to the environment, [`actor`] puts a
//! session between observations and actions, [`metrics`] has the one definition
//! of an error of actions. Nothing here prints or reads the clock.

pub mod actor;
pub mod closed_loop;
pub mod metrics;
pub mod open_loop;
pub mod process;
pub mod protocol;
pub mod report;
pub mod stats;
