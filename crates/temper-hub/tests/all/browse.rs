//! Searching, facts, logging in.

use std::fs;

use temper_hub::{Hub, Search, Settings, Token, decide, login, logout};
use temper_testhub::{Gated, Kind};

use crate::bench::{Bench, says};

#[test]
fn models_are_found_and_described() {
    let bench = Bench::new();
    let commit = bench.seed_model("lab/tiny-bert");
    bench.seed_model("lab/other");
    bench.server.set_popularity(Kind::Model, "lab/tiny-bert", 1000, 3).unwrap();
    let search = |text: &str| bench.hub().search(&Search { text: text.into(), task: None, limit: 10 }).unwrap();
    let found = search("bert");
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].repo.id(), found[0].downloads), ("lab/tiny-bert", Some(1000)));
    assert_eq!(search("").len(), 2);
    assert!(search("nothing-like-it").is_empty());
    let facts = bench.hub().facts(&"lab/tiny-bert".parse().unwrap()).unwrap();
    assert_eq!(facts.pinned.commit.as_str(), commit);
    assert_eq!((facts.model_type.as_deref(), facts.license.as_deref()), (Some("bert"), Some("apache-2.0")));
    assert_eq!((facts.safetensors, facts.gated, facts.remote_code), (700_000, false, false));
    assert!(facts.bytes > 700_000 && facts.files >= 4);
    assert_eq!(decide(&facts.terms(), &[], None, None).unwrap().license.as_deref(), Some("apache-2.0"));
    bench.server.set_gated(Kind::Model, "lab/other", Gated::Manual).unwrap();
    let facts = bench.hub().facts(&"lab/other".parse().unwrap()).unwrap();
    assert!(facts.gated && decide(&facts.terms(), &[], None, None).is_err());
    says(bench.offline().search(&Search { text: String::new(), task: None, limit: 1 }), &["offline"]);
}

#[test]
fn logging_in_and_out() {
    let bench = Bench::new();
    let settings = bench.settings(None);
    let file = settings.token_file.value.clone();
    let wrong = Token::new("hf_wrongwrongwrongwrongWRNG").unwrap();
    says(login(&settings, wrong), &["invalid or has expired"]);
    assert!(!file.exists());
    let account = login(&settings, Token::new(bench.server.token()).unwrap()).unwrap();
    assert_eq!((account.name.as_str(), account.role.as_str()), ("me", "write"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let home = bench.home.path().to_str().unwrap().to_string();
    let endpoint = bench.server.endpoint().to_string();
    let variable = |name: &str| match name {
        "HF_HOME" => Some(home.clone()),
        "HF_ENDPOINT" => Some(endpoint.clone()),
        _ => None,
    };
    let read = Settings::resolve(&variable).unwrap();
    assert_eq!(Hub::new(read).unwrap().whoami().unwrap().name, "me");
    assert!(logout(&settings).unwrap() && !logout(&settings).unwrap());
    assert!(Settings::resolve(&variable).unwrap().token.value.is_none());
}
