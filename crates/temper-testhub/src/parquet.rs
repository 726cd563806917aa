//! Datasets as Parquet, from the branch where the hub keeps its conversions (`refs/convert/parquet`).

use serde_json::{Map, Value, json};

use crate::error::{Answer, Refusal};
use crate::http::{Reply, Request, encode_path};
use crate::hub::Hub;
use crate::repo::Kind;

const BRANCH: &str = "refs/convert/parquet";

/// `GET …/parquet[/config[/split[/n.parquet]]]`.
pub(crate) fn list(hub: &Hub, request: &Request, id: &str, rest: &[&str]) -> Answer {
    let visit = hub.open(request, Kind::Dataset, id)?;
    hub.let_in(&visit)?;
    let commit = hub.commit_of(&visit.repo, BRANCH)?;
    let nodes = hub.snapshot(&visit.repo.git, &commit)?;
    let base = format!("{}/{}/parquet", hub.endpoint, visit.repo.api());
    let mut configs: Map<String, Value> = Map::new();
    for node in nodes.iter().filter(|node| !node.directory) {
        let parts: Vec<&str> = node.path.split('/').collect();
        let [config, split, file] = parts[..] else { continue };
        if !file.ends_with(".parquet") {
            continue;
        }
        let splits = configs.entry(config).or_insert_with(|| json!({}));
        if splits[split].is_null() {
            splits[split] = json!([]);
        }
        if let Some(files) = splits[split].as_array_mut() {
            files.push(json!(format!("{base}/{}/{}.parquet", encode_path(&format!("{config}/{split}")), files.len())));
        }
    }
    match rest {
        [config, split, file] => {
            let number: Option<usize> = file.strip_suffix(".parquet").and_then(|number| number.parse().ok());
            let prefix = format!("{config}/{split}/");
            let mut files = nodes.iter().filter(|node| !node.directory && node.path.starts_with(&prefix));
            let node = number.and_then(|number| files.nth(number)).ok_or_else(|| Refusal::no_entry(file, BRANCH))?;
            let page = visit.repo.page();
            let location =
                format!("{}/{page}/resolve/refs%2Fconvert%2Fparquet/{}", hub.endpoint, encode_path(&node.path));
            Ok(Reply::new(302, "Found").with("location", &location))
        }
        path => {
            let all = Value::Object(configs);
            let found = path.iter().try_fold(&all, |value, key| value.get(key));
            Ok(Reply::json(found.ok_or_else(|| Refusal::no_entry(&path.join("/"), BRANCH))?))
        }
    }
}
