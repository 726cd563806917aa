//! The kernels of `src/cuda/attention.cu`, run on a processor by `cuda/flash.cpp` and compared with plain sums there.

use std::path::Path;
use std::process::Command;

/// Compiles it with these definitions, and runs it.
fn emulate(definitions: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/flash.cpp");
    let name: String = definitions.split_whitespace().flat_map(|definition| definition.split('=').nth(1)).collect();
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("flash-{name}"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut compile = Command::new(&compiler);
    compile.args(["-std=c++20", "-O2", "-Wno-unknown-pragmas"]).arg(source).arg("-o").arg(&program);
    compile.args(definitions.split_whitespace().map(|definition| format!("-D{definition}")));
    match compile.output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => return eprintln!("skipped, for there is no C++ compiler `{compiler}`: {error}"),
    }
    let output = Command::new(program).output().expect("what was compiled");
    assert!(output.status.success(), "{definitions}: {}", String::from_utf8_lossy(&output.stderr));
    let compared = String::from_utf8_lossy(&output.stdout).lines().count();
    assert_eq!(compared, 5 * 5 * 2);
}

#[test]
fn small_heads_keep_their_rows_in_registers() {
    emulate(
        "FEATURES=64 F16=0 DROPS=0 KEEPS=1 FORWARD_TILES=1 FORWARD_WIDTH=64 QUERIES_TILES=1 QUERIES_WIDTH=64 KEYS_TILES=1 KEYS_WIDTH=64",
    );
}

#[test]
fn weights_are_dropped_alike_forward_and_backward() {
    emulate(
        "FEATURES=16 F16=1 DROPS=1 KEEPS=1 FORWARD_TILES=1 FORWARD_WIDTH=64 QUERIES_TILES=1 QUERIES_WIDTH=64 KEYS_TILES=1 KEYS_WIDTH=64",
    );
}

#[test]
fn large_heads_read_their_rows_again() {
    emulate(
        "FEATURES=128 F16=1 DROPS=0 KEEPS=0 FORWARD_TILES=1 FORWARD_WIDTH=64 QUERIES_TILES=1 QUERIES_WIDTH=32 KEYS_TILES=1 KEYS_WIDTH=32",
    );
}

#[test]
fn a_warp_takes_as_many_rows_as_it_is_told() {
    emulate(
        "FEATURES=32 F16=0 DROPS=1 KEEPS=0 FORWARD_TILES=2 FORWARD_WIDTH=32 QUERIES_TILES=2 QUERIES_WIDTH=64 KEYS_TILES=2 KEYS_WIDTH=32",
    );
}
