//! Rows in packs, and long texts in pieces.

use super::*;

#[test]
fn packs_hold_every_row_once() {
    let folder = many();
    let load = |packing, seed| {
        let config = DataConfig { packing, ..folder.config("chat.jsonl") };
        load(
            &config,
            folder.directory.path(),
            Target::Causal { vocab_size: None, positions: None },
            &folder.chat.tokenizer,
            128,
            seed,
        )
        .unwrap()
    };
    let (rows, packs) = (load(false, 1), load(true, 1));
    let row_of: HashMap<u32, usize> = (0..rows.train.len()).map(|row| (rows.train.source(row).line, row)).collect();
    let mut seen = Vec::new();
    for pack in 0..packs.train.len() {
        let (ids, trained) = (packs.train.ids(pack), packs.train.trained(pack));
        assert!(ids.len() <= 128 && ids.len() == packs.train.length(pack));
        let (mut start, mut expected) = (0, Vec::new());
        for (source, length) in packs.train.sources(pack).iter().zip(packs.train.segments(pack)) {
            let row = row_of[&source.line];
            let end = start + length as usize;
            assert_eq!(rows.train.ids(row).as_ref(), &ids[start..end]);
            expected.extend(rows.train.trained(row).into_iter().map(|run| start + run.start..start + run.end));
            start = end;
            seen.push(row);
        }
        assert_eq!(trained, expected);
        let batch = packs.train.batch(&[pack as u32], 0);
        assert_eq!((batch.lengths()[0] as usize, batch.tokens() as usize), (ids.len(), ids.len()));
        assert!(
            batch.segments[0]
                .iter()
                .scan(0, |at, &n| Some(std::mem::replace(at, *at + n)))
                .all(|at| !batch.trained[at as usize])
        );
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
    let report = packs.report.train.packing.unwrap();
    assert_eq!(
        (report.packs, report.trained_tokens),
        (packs.train.len(), rows.report.train.packing.unwrap().trained_tokens)
    );
    assert!(report.efficiency > 0.95, "{}", report.efficiency);
    assert_eq!(report.efficiency, packs.report.train.tokens as f64 / (128 * packs.train.len()) as f64);
    let parts =
        |data: &Dataset| (0..data.train.len()).map(|pack| data.train.ids(pack).into_owned()).collect::<Vec<_>>();
    assert_eq!(parts(&packs), parts(&load(true, 1)));
    assert_ne!(parts(&packs), parts(&load(true, 2)));
}

#[test]
fn long_texts_are_cut_into_pieces_and_nothing_is_lost() {
    let folder = many();
    for packing in [false, true] {
        let data = folder.load_with(&DataConfig { packing, ..folder.config("text.jsonl") }, 32).unwrap();
        let mut of_line: HashMap<u32, Vec<Vec<u32>>> = HashMap::new();
        for row in 0..data.train.len() {
            assert!(data.train.length(row) <= 32);
            let ids = data.train.ids(row);
            let mut start = 0;
            for (source, length) in data.train.sources(row).iter().zip(data.train.segments(row)) {
                of_line.entry(source.line).or_default().push(ids[start..start + length as usize].to_vec());
                start += length as usize;
            }
            let targets: usize = data.train.trained(row).iter().map(ExactSizeIterator::len).sum();
            assert_eq!(targets, ids.len() - data.train.segments(row).len());
        }
        assert_eq!(of_line.len(), 200);
        for (line, mut pieces) in of_line {
            let whole = {
                let text = format!("{}{}", line - 1, " OK".repeat((line as usize - 1) * 31 % 150));
                let mut ids = folder.chat.tokenizer.encode(&text, None, usize::MAX).unwrap().ids;
                ids.extend(folder.chat.tokenizer.eos_id());
                ids
            };
            // Packs are in no order; full pieces before the rest, and each piece is there once.
            assert!(pieces.iter().filter(|piece| piece.len() < 32).count() <= 1);
            let mut expected: Vec<Vec<u32>> = whole.chunks(32).map(<[u32]>::to_vec).collect();
            // One token alone teaches nothing.
            expected.retain(|piece| packing || piece.len() > 1);
            pieces.sort();
            expected.sort();
            assert_eq!(pieces, expected, "{line}");
        }
        assert_eq!(data.report.train.truncated_rows, 0);
    }
}

/// The last piece of a text may be its end alone, of which nothing is learned.
#[test]
fn no_row_is_trained_on_without_a_target() {
    // With the end 33 tokens, and 1.
    let long = " OK".repeat(16);
    let rows = format!("{{\"text\":\"{long}\"}}\n").repeat(40) + "{\"text\":\"\"}";
    let folder = Folder::with(&[("text.jsonl", &rows)]);
    assert_eq!(folder.chat.tokenizer.encode(&long, None, usize::MAX).unwrap().ids.len(), 32);
    for packing in [false, true] {
        let config = DataConfig { packing, eval_fraction: Some(0.0), ..folder.config("text.jsonl") };
        let data = folder.load_with(&config, 32).unwrap();
        let packs = data.report.train.packing.as_ref().unwrap();
        assert_eq!((data.train.len(), packs.packs, packs.efficiency), (40, 40, 1.0), "{packing}");
        assert!((0..40).all(|row| data.train.length(row) == 32 && !data.train.trained(row).is_empty()));
    }
}

#[test]
fn packs_keep_the_weights_of_their_files_apart() {
    let folder = many();
    let weighted =
        |path: &str, weight| FileEntry::Table(FileTable { path: path.into(), weight, config: None, split: None });
    let train = Files::Many(vec![weighted("text.jsonl", 1.0), weighted("text.jsonl", 2.0)]);
    let data = folder.load_with(&DataConfig { train, packing: true, ..folder.config("text.jsonl") }, 64).unwrap();
    let weights: Vec<f64> = (0..data.train.len()).map(|row| data.train.weight(row)).collect();
    assert_eq!(weights.chunk_by(|a, b| a == b).map(|run| run[0]).collect::<Vec<_>>(), [1.0, 2.0]);
    let order = Order::new(&data.train, 1, 4, Micro::Tokens(128), true);
    let mut counts = vec![0; data.train.len()];
    (0..order.steps_per_epoch())
        .flat_map(|step| order.micro_batches(step).concat())
        .for_each(|row| counts[row as usize] += 1);
    assert!(counts.iter().zip(weights).all(|(&n, weight)| f64::from(n) == weight));
}
