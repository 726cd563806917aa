//! Serves a hub until killed, for clients in other languages. Prints one line of JSON: where it is, and tokens.

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use temper_testhub::{Options, Role, TestHub};

/// A hub to test against, on a free port of this machine.
#[derive(Parser)]
struct Arguments {
    /// Offer Xet beside Git LFS.
    #[arg(long)]
    xet: bool,
    /// LFS files above this many bytes are uploaded in parts.
    #[arg(long, value_name = "BYTES")]
    multipart_threshold: Option<u64>,
    /// Bytes of such a part.
    #[arg(long, value_name = "BYTES")]
    part_bytes: Option<u64>,
    /// Entries on a page of a listing.
    #[arg(long, value_name = "ENTRIES")]
    page: Option<usize>,
    /// Answer requests for small files with a redirect on the same host.
    #[arg(long)]
    resolve_cache: bool,
    /// Where repositories and files lie; a temporary directory otherwise.
    #[arg(long, value_name = "DIRECTORY")]
    place: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = Arguments::parse();
    let defaults = Options::default();
    let options = Options {
        xet: arguments.xet,
        multipart_threshold: arguments.multipart_threshold.unwrap_or(defaults.multipart_threshold),
        part_bytes: arguments.part_bytes.unwrap_or(defaults.part_bytes),
        page: arguments.page.unwrap_or(defaults.page),
        resolve_cache: arguments.resolve_cache,
        place: arguments.place,
        ..defaults
    };
    let hub = TestHub::start(options)?;
    hub.join("lab", "me", true);
    let line = serde_json::json!({
        "endpoint": hub.endpoint(), "storage": hub.storage(), "repositories": hub.root().join("repos"),
        "tokens": {
            "me": hub.token(), "me_read": hub.issue("me", Role::Read), "stranger": hub.issue("stranger", Role::Write),
            "expired": hub.issue_until("me", Role::Write, std::time::SystemTime::UNIX_EPOCH),
        },
    });
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()?;
    loop {
        std::thread::park();
    }
}
