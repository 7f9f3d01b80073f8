//! `policy.toml`: bounds that are accepted are in order, rates are positive.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use qailc::policy::Policy;

fuzz_target!(|text: &str| {
    match Policy::parse(Path::new("policy.toml"), text) {
        Ok(policy) => {
            assert!(policy.bounds.iter().all(|(low, high)| low < high));
            assert!(policy.control_rate_hz.is_none_or(|rate| rate > 0.0 && rate.is_finite()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
