//! What of a plan decides a number, and how two plans differ in that.

use serde_json::Value;
use sha2::{Digest, Sha256};
use temper_hub::hex;

use super::Plan;
use crate::failure::{Context, Failure, Kind};

impl Plan {
    /// Hash of what decides a number.
    pub(crate) fn to_fingerprint(&self) -> Result<String, Failure> {
        Ok(hex(&Sha256::digest(self.deciding()?.to_string().as_bytes())[..16]))
    }

    /// The dotted names of what decides a number and is another in `old`, a plan as `plan.json` has it; at most six.
    pub(crate) fn differences_from(&self, old: Value) -> Result<Vec<String>, Failure> {
        let mut out = Vec::new();
        differences("", &deciding(old), &self.deciding()?, &mut out);
        Ok(out)
    }

    /// As `plan.json` has it: an f32 is another number when it is read back.
    fn deciding(&self) -> Result<Value, Failure> {
        let text = serde_json::to_string(self).and_then(|text| serde_json::from_str(&text));
        text.map(deciding).context(Kind::Other, "failed to hash the plan")
    }
}

/// The part of a plan that decides a number: not where the run goes, how often it reports or saves, nor what memory there
/// is.
fn deciding(mut plan: Value) -> Value {
    const APART: [&str; 8] =
        ["distributed", "run", "sources", "endpoint", "to_come", "export", "memory", "fingerprint"];
    const REPORTS: [&str; 5] = ["log_every", "save_every", "keep_last", "max_wall", "gradient_checkpointing"];
    for (table, apart) in [
        ("", &APART[..]),
        ("/task", &["samples"]),
        // What the recipe leaves open depends on the number of ranks, and makes the same step.
        ("/train", &["micro_batch", "eval_batch"]),
        ("/train/config", &REPORTS),
        ("/data/config", &["workers"]),
        ("/device", &["name", "threads"]),
    ] {
        let table = plan.pointer_mut(table).and_then(Value::as_object_mut);
        table.into_iter().for_each(|table| table.retain(|key, _| !apart.contains(&key.as_str())));
    }
    for files in
        ["/data/config/train", "/data/config/eval", "/model/files", "/model/adapter", "/data/files", "/task/files"]
    {
        plan.pointer_mut(files).into_iter().for_each(drop_paths);
    }
    plan
}

/// Takes the paths out of files and leaves the rest: they are known by their hashes.
fn drop_paths(files: &mut Value) {
    match files {
        Value::String(path) => path.clear(),
        Value::Array(files) => files.iter_mut().for_each(drop_paths),
        Value::Object(file) => {
            file.remove("path");
        }
        _ => {}
    }
}

fn differences(path: &str, old: &Value, new: &Value, out: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(&path, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        _ if old != new && out.len() < 6 => out.push(path.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_decides_no_number_is_no_difference() {
        let plan = |dir: &str, path: &str, sha256: &str, lr: f64| {
            json!({
                "fingerprint": sha256, "run": { "dir": dir }, "export": { "merge": dir }, "memory": { "data": lr },
                "task": { "kind": "causal-lm", "samples": lr }, "model": { "files": [{ "path": path, "sha256": sha256 }] },
                "train": { "config": { "lr": lr, "log_every": lr } },
                "data": { "config": { "train": [path, { "path": path, "weight": 1.0 }], "workers": lr } },
            })
        };
        let between = |a: Value, b: Value| {
            let mut out = Vec::new();
            differences("", &deciding(a), &deciding(b), &mut out);
            out
        };
        assert_eq!(between(plan("a", "x", "5e", 0.1), plan("b", "y", "5e", 0.1)), [""; 0]);
        assert_eq!(between(plan("a", "x", "5e", 0.1), plan("b", "y", "5f", 0.2)), ["model.files", "train.config.lr"]);
    }
}
