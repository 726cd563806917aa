//! The client against `temper-testhub`: what works, and that nothing is lost or doubled when something does not.

#![allow(missing_docs, clippy::unwrap_used)]

mod bench;
mod browse;
mod pull;
mod pull_faults;
mod push;
mod push_faults;
mod xet_faults;
