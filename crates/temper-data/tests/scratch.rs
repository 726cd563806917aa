//! scratch
use temper_data::*;
use std::path::Path;
#[test]
fn parity() {
    let Ok(f) = std::env::var("PARITY") else { return };
    let t = Tokenizer::from_dir(Path::new(&std::env::var("TOK").unwrap())).unwrap();
    let (mut n, mut bad) = (0, 0);
    for line in std::fs::read_to_string(f).unwrap().lines() {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        let e = t.encode(v["text"].as_str().unwrap(), v["pair"].as_str(), v["max_length"].as_u64().unwrap() as usize).unwrap();
        n += 1;
        if serde_json::json!(e.ids) != v["ids"] || serde_json::json!(e.type_ids) != v["type_ids"] { bad += 1; if bad < 5 { println!("{v} {:?}", e.ids); } }
    }
    println!("parity {n} cases, {bad} bad; pad {} mask {:?} vocab {} special {:?}", t.pad_id(), t.mask_id(), t.vocab_size(), t.special_ids());
    assert_eq!(bad, 0);
}
#[test]
fn bench() {
    let Ok(f) = std::env::var("BENCH") else { return };
    let t = Tokenizer::from_dir(Path::new(&std::env::var("TOK").unwrap())).unwrap();
    let c = DataConfig { train: Files::One(f), ..Default::default() };
    let s = std::time::Instant::now();
    let d = load(&c, Path::new("/"), LabelKind::Class(None), &t, 128, 1).unwrap();
    println!("load {:?} {} rows {} tokens", s.elapsed(), d.train.len() + d.eval.len(), d.report.train.tokens);
    for f in &d.report.findings { println!("{f:?}"); }
    let s = std::time::Instant::now();
    let o = std::sync::Arc::new(Order::new(&d.train, 1, 32, 32, true));
    let n = o.steps_per_epoch(); o.micro_batches(0);
    println!("order {:?} {n} steps", s.elapsed());
    let s = std::time::Instant::now();
    let tr = d.train.clone();
    let k: usize = prefetch(1, 4, 0, n.min(20000), move |i| o.micro_batches(i).iter().map(|m| tr.batch(m, 0).ids.len()).sum::<usize>()).sum();
    println!("batches {:?} {k} padded", s.elapsed());
}
