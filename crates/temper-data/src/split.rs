//! Which rows are set aside for evaluation.
//!
//! The split depends on what the rows say, not on a seed, their order or the order of the files: runs of several seeds have the same
//! rows aside. Rows that say the same but for case and white space stay on one side, so that evaluation never sees a training row.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::{hash::RowHash, labels::Column, random::mix};

/// Rows to train on and rows set aside, both ascending. Each class gives its share; a class of several distinct rows has
/// at least one on each side.
pub(crate) fn by_content(hashes: &[RowHash], labels: &Column, fraction: f64) -> (Vec<u32>, Vec<u32>) {
    if fraction <= 0.0 {
        return ((0..hashes.len() as u32).collect(), Vec::new());
    }
    // Rows that say the same, side by side; the groups in an order that says nothing.
    let mut rows: Vec<(u64, u32)> =
        hashes.iter().enumerate().map(|(row, hash)| (mix(hash.normal), row as u32)).collect();
    rows.par_sort_unstable();
    let groups: Vec<&[(u64, u32)]> = rows.chunk_by(|a, b| a.0 == b.0).collect();
    // A group's stratum is its least label: whichever row came first does not matter.
    let mut strata: Vec<u64> =
        groups.iter().map(|group| group.iter().map(|&(_, row)| stratum(labels, row)).min().unwrap_or(0)).collect();
    if matches!(labels, Column::Multi { .. }) {
        pool_rare(&groups, &mut strata, fraction);
    }
    let mut counts: HashMap<u64, Share> = HashMap::new();
    for (group, stratum) in groups.iter().zip(&strata) {
        let share = counts.entry(*stratum).or_default();
        share.rows += group.len();
        share.groups += 1;
    }
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    for (group, stratum) in groups.iter().zip(&strata) {
        let Some(share) = counts.get_mut(stratum) else { continue };
        share.groups -= 1;
        let target = share.rows as f64 * fraction;
        let fits = share.eval as f64 + group.len() as f64 / 2.0 <= target;
        let last = share.groups == 0;
        let aside = (fits || (last && share.eval == 0)) && !(last && share.train == 0);
        let side = if aside { &mut eval } else { &mut train };
        side.extend(group.iter().map(|&(_, row)| row));
        *(if aside { &mut share.eval } else { &mut share.train }) += group.len();
    }
    train.sort_unstable();
    eval.sort_unstable();
    (train, eval)
}

#[derive(Default)]
struct Share {
    rows: usize,
    /// Groups still to come.
    groups: usize,
    train: usize,
    eval: usize,
}

fn stratum(labels: &Column, row: u32) -> u64 {
    match labels {
        Column::Class(ids) => u64::from(ids[row as usize]),
        Column::Multi { .. } => labels.fingerprint(row as usize),
        Column::Score(_) | Column::None => 0,
    }
}

/// Sets of labels too rare to give a share of their own are split together.
fn pool_rare(groups: &[&[(u64, u32)]], strata: &mut [u64], fraction: f64) {
    let mut counts: HashMap<u64, usize> = HashMap::new();
    groups.iter().zip(strata.iter()).for_each(|(group, stratum)| *counts.entry(*stratum).or_default() += group.len());
    for stratum in strata {
        if (counts[stratum] as f64) * fraction < 1.0 {
            *stratum = u64::MAX;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hashes(texts: &[String]) -> Vec<RowHash> {
        texts.iter().map(|text| RowHash::new(text, None)).collect()
    }

    fn texts(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("row {}", i / 2)).collect()
    }

    #[test]
    fn classes_keep_their_share_and_duplicates_one_side() {
        let texts = texts(2000);
        let labels = Column::Class((0..2000).map(|i| u32::from(i % 20 < 2)).collect());
        let (train, eval) = by_content(&hashes(&texts), &labels, 0.1);
        assert_eq!((train.len(), eval.len()), (1800, 200));
        assert_eq!(eval.iter().filter(|&&row| row % 20 < 2).count(), 20);
        assert!(eval.iter().all(|row| eval.contains(&(row ^ 1))), "a duplicate is on the other side");
    }

    #[test]
    fn the_order_of_rows_does_not_matter() {
        let mut texts = texts(300);
        let class = |text: &String| u32::from(text.ends_with('3'));
        let side = |texts: &[String]| {
            let labels = Column::Class(texts.iter().map(class).collect());
            let mut eval: Vec<String> =
                by_content(&hashes(texts), &labels, 0.25).1.iter().map(|&row| texts[row as usize].clone()).collect();
            eval.sort();
            eval
        };
        let before = side(&texts);
        texts.reverse();
        assert_eq!(before, side(&texts));
    }

    #[test]
    fn small_classes_are_on_both_sides_and_none_is_lost() {
        let texts: Vec<String> = (0..9).map(|i| format!("{i}")).collect();
        let labels = Column::Class(vec![0, 0, 0, 0, 0, 0, 1, 1, 2]);
        let (train, eval) = by_content(&hashes(&texts), &labels, 0.1);
        let of =
            |rows: &[u32], class| rows.iter().filter(|&&r| [0, 0, 0, 0, 0, 0, 1, 1, 2][r as usize] == class).count();
        assert_eq!((of(&train, 0), of(&eval, 0), of(&train, 1), of(&eval, 1), of(&train, 2)), (5, 1, 1, 1, 1));
        let mut all = [train, eval].concat();
        all.sort_unstable();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
        assert_eq!(by_content(&hashes(&texts), &labels, 0.0).0.len(), 9);
        assert_eq!(by_content(&[], &Column::None, 0.5), (vec![], vec![]));
    }
}
