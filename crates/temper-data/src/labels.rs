//! Labels: what the task expects, and from what a file has to what a task learns.

use std::collections::HashMap;

use crate::{
    config::LabelColumns,
    error::{Error, Result, listed, nearest},
    source::{LabelSource, Raw},
};

/// What labels a task expects.
#[derive(Debug, Clone, PartialEq)]
pub enum LabelKind {
    /// One class a row. With names, a label is a name or its index. Without, the names are those found in the training
    /// and evaluation files: in numerical order where all are integers, else sorted as text; or those that the first file lists, in
    /// its order.
    Class(Option<Vec<String>>),
    /// Any number of labels a row: a list of names, or one 0/1 column each. Names as for `Class`; columns give theirs.
    Multi(Option<Vec<String>>),
    /// A finite number.
    Score,
    /// Labels are not read.
    None,
}

/// The label of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// Index into the label names.
    Class(u32),
    /// One flag for each label name.
    Multi(Vec<bool>),
    /// A number.
    Score(f32),
    /// Labels were not read.
    None,
}

/// The labels of many rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Column {
    Class(Vec<u32>),
    /// The ids of row r end at `ends[r]`.
    Multi {
        ends: Vec<u64>,
        ids: Vec<u32>,
    },
    Score(Vec<f32>),
    #[default]
    None,
}

impl Column {
    pub(crate) fn get(&self, row: usize, names: usize) -> Label {
        match self {
            Self::Class(ids) => Label::Class(ids[row]),
            Self::Multi { .. } => {
                let mut flags = vec![false; names];
                self.active(row).iter().for_each(|&id| flags[id as usize] = true);
                Label::Multi(flags)
            }
            Self::Score(scores) => Label::Score(scores[row]),
            Self::None => Label::None,
        }
    }

    /// Ids of the classes of a row: one, several or none.
    pub(crate) fn active(&self, row: usize) -> &[u32] {
        match self {
            Self::Class(ids) => &ids[row..=row],
            Self::Multi { ends, ids } => {
                let start = if row == 0 { 0 } else { ends[row - 1] as usize };
                &ids[start..ends[row] as usize]
            }
            Self::Score(_) | Self::None => &[],
        }
    }

    /// A number that is equal for equal labels.
    pub(crate) fn fingerprint(&self, row: usize) -> u64 {
        match self {
            Self::Score(scores) => u64::from(scores[row].to_bits()),
            _ => self.active(row).iter().fold(0, |hash, &id| crate::random::mix(hash ^ (u64::from(id) + 1))),
        }
    }
}

/// Turns raw labels into columns, collecting names on the way where none were given.
pub(crate) struct Labels {
    kind: LabelKind,
    names: Vec<String>,
    index: HashMap<String, u32>,
    /// Names were given: no other is allowed.
    closed: bool,
    /// One 0/1 column for each name, in their order.
    flags: bool,
}

impl Labels {
    pub(crate) fn new(kind: LabelKind, columns: &LabelColumns) -> Result<Self> {
        let error = |message: String| Err(Error::Config { field: "label", message });
        let given = match &kind {
            LabelKind::Class(names) | LabelKind::Multi(names) => names.clone(),
            LabelKind::Score | LabelKind::None => None,
        };
        let flags = matches!((&kind, columns), (LabelKind::Multi(_), LabelColumns::Many(_)));
        let given = match (columns, &kind) {
            (LabelColumns::One(_), _) | (_, LabelKind::None) => given,
            (LabelColumns::Many(columns), LabelKind::Multi(_)) => {
                let sorted = |names: &[String]| {
                    let mut names = names.to_vec();
                    names.sort();
                    names
                };
                if given.as_ref().is_some_and(|given| sorted(given) != sorted(columns)) {
                    return error("the columns are not the label names; give the same names in both".into());
                }
                given.or_else(|| Some(columns.clone()))
            }
            (LabelColumns::Many(_), _) => {
                return error("a list of columns is for several labels a row; this task needs one column".into());
            }
        };
        let closed = given.is_some();
        let names = given.unwrap_or_default();
        let mut index = HashMap::new();
        for (id, name) in names.iter().enumerate() {
            if index.insert(name.clone(), id as u32).is_some() {
                return error(format!("the label name \"{name}\" comes twice"));
            }
        }
        if closed && names.is_empty() {
            return error("the list of label names is empty".into());
        }
        Ok(Self { kind, names, index, closed, flags })
    }

    /// The columns to read for them.
    pub(crate) fn source(&self, columns: &LabelColumns) -> LabelSource {
        match (&self.kind, columns) {
            (LabelKind::None, _) => LabelSource::None,
            (_, LabelColumns::One(name)) => LabelSource::One(name.clone()),
            (_, LabelColumns::Many(_)) => LabelSource::Many(self.names.clone()),
        }
    }

    pub(crate) fn column(&self) -> Column {
        match self.kind {
            LabelKind::Class(_) => Column::Class(Vec::new()),
            LabelKind::Multi(_) => Column::Multi { ends: Vec::new(), ids: Vec::new() },
            LabelKind::Score => Column::Score(Vec::new()),
            LabelKind::None => Column::None,
        }
    }

    /// Appends one label; the error is a message without its place.
    pub(crate) fn push(&mut self, raw: Raw, column: &mut Column) -> Result<(), String> {
        match column {
            Column::None => {}
            Column::Class(ids) => {
                let id = self.id(raw)?;
                ids.push(id);
            }
            Column::Score(scores) => scores.push(score(&raw)?),
            Column::Multi { ends, ids } => {
                let start = ids.len();
                match raw {
                    Raw::List(cells) if self.flags => {
                        for (id, cell) in cells.iter().enumerate() {
                            if flag(cell).map_err(|e| format!("column `{}` {e}", self.names[id]))? {
                                ids.push(id as u32);
                            }
                        }
                    }
                    Raw::List(items) => {
                        for item in items {
                            ids.push(self.id(item)?);
                        }
                    }
                    Raw::Text(text) => {
                        for item in split(&text)? {
                            ids.push(self.id(item)?);
                        }
                    }
                    other => return Err(format!("the label is {}, a list of names is needed", other.kind())),
                }
                ids[start..].sort_unstable();
                if ids[start..].windows(2).any(|pair| pair[0] == pair[1]) {
                    return Err("the list of labels names one label twice".into());
                }
                ends.push(ids.len() as u64);
            }
        }
        Ok(())
    }

    fn id(&mut self, raw: Raw) -> Result<u32, String> {
        let name = match raw {
            Raw::Class(class, names) => self.listed(class, &names)?,
            Raw::Text(text) => text,
            Raw::Integer(i) => i.to_string(),
            Raw::Bool(b) => b.to_string(),
            // Columns of integers with gaps become floats in pandas; and no class is called -0.
            Raw::Float(f) if f.fract() == 0.0 && f.abs() < 9e15 => format!("{:.0}", f + 0.0),
            Raw::Float(f) => return Err(format!("the label is {f}; a class is a name or an integer")),
            Raw::List(_) => return Err("the label is a list; this task has one class a row".into()),
            Raw::Object => return Err("the label is an object; a class is a name or an integer".into()),
            Raw::None | Raw::Null => return Err("the label is null".into()),
        };
        if let Some(&id) = self.index.get(&name) {
            return Ok(id);
        }
        if name.is_empty() {
            return Err("the label is empty".into());
        }
        if self.closed {
            // A number is an index, unless the names are numbers themselves: "1" would be two things.
            let by_index = self.names.iter().all(|name| name.parse::<i64>().is_err());
            return match name.parse::<usize>() {
                Ok(id) if by_index && id < self.names.len() => Ok(id as u32),
                _ => {
                    let names = || self.names.iter().map(String::as_str);
                    Err(format!("the label \"{name}\" is not one of {}{}", listed(names()), nearest(&name, names())))
                }
            };
        }
        let id = self.names.len() as u32;
        self.index.insert(name.clone(), id);
        self.names.push(name);
        Ok(id)
    }

    /// The name of a class of a file that lists them. What no names were given for has those.
    fn listed(&mut self, class: i64, names: &[String]) -> Result<String, String> {
        let Some(name) = usize::try_from(class).ok().and_then(|class| names.get(class)) else {
            return Err(format!("the label is {class}, and the file names {} classes, from 0", names.len()));
        };
        if !self.closed && !self.names.is_empty() && self.names.iter().all(|name| name.parse::<i64>().is_ok()) {
            let message = "which rows before it have as numbers: name this file first";
            return Err(format!("the file names its classes, {}, {message}", listed(names.iter().map(String::as_str))));
        }
        if !self.closed && self.names.is_empty() {
            self.index = names.iter().cloned().zip(0..).collect();
            (self.names, self.closed) = (names.to_vec(), true);
        }
        let known = !self.closed || self.index.contains_key(name);
        Ok(if known { name.clone() } else { class.to_string() })
    }

    /// The names in their final order; the ids in the columns follow them.
    pub(crate) fn finish(self, columns: &mut [&mut Column]) -> Vec<String> {
        if self.closed {
            return self.names;
        }
        let mut order: Vec<u32> = (0..self.names.len() as u32).collect();
        let numbers: Option<Vec<i64>> = self.names.iter().map(|name| name.parse().ok()).collect();
        match numbers {
            Some(numbers) => order.sort_by_key(|&id| (numbers[id as usize], id)),
            None => order.sort_by_key(|&id| &self.names[id as usize]),
        }
        let mut rank = vec![0; order.len()];
        order.iter().enumerate().for_each(|(new, &old)| rank[old as usize] = new as u32);
        for column in columns {
            match column {
                Column::Class(ids) => ids.iter_mut().for_each(|id| *id = rank[*id as usize]),
                Column::Multi { ends, ids } => {
                    ids.iter_mut().for_each(|id| *id = rank[*id as usize]);
                    let mut start = 0;
                    for &end in ends.iter() {
                        ids[start..end as usize].sort_unstable();
                        start = end as usize;
                    }
                }
                Column::Score(_) | Column::None => {}
            }
        }
        order.into_iter().map(|id| self.names[id as usize].clone()).collect()
    }
}

fn score(raw: &Raw) -> Result<f32, String> {
    let value = match raw {
        Raw::Integer(i) | Raw::Class(i, _) => *i as f64,
        Raw::Float(f) => *f,
        Raw::Text(text) => {
            text.trim().parse().map_err(|_| format!("the score is {}, a number is needed", raw.kind()))?
        }
        other => return Err(format!("the score is {}, a number is needed", other.kind())),
    };
    if (value as f32).is_finite() { Ok(value as f32) } else { Err(format!("the score is {value}, not a finite f32")) }
}

fn flag(raw: &Raw) -> Result<bool, String> {
    match raw {
        Raw::Bool(b) => Ok(*b),
        Raw::Integer(0) | Raw::Class(0, _) => Ok(false),
        Raw::Integer(1) | Raw::Class(1, _) => Ok(true),
        Raw::Float(f) if *f == 0.0 || *f == 1.0 => Ok(*f == 1.0),
        Raw::Text(text) => match text.trim().to_lowercase().as_str() {
            "0" | "false" | "0.0" => Ok(false),
            "1" | "true" | "1.0" => Ok(true),
            _ => Err(format!("holds {}, 0 or 1 is needed", raw.kind())),
        },
        other => Err(format!("holds {}, 0 or 1 is needed", other.kind())),
    }
}

/// A cell of a text file that holds several names: a JSON list, or names between `|`.
fn split(text: &str) -> Result<Vec<Raw>, String> {
    if text.trim_start().starts_with('[') {
        let items: Vec<serde_json::Value> =
            serde_json::from_str(text).map_err(|e| format!("the label begins like a JSON list but is none: {e}"))?;
        return Ok(items.into_iter().map(crate::jsonl::raw).collect());
    }
    Ok(text.split('|').map(str::trim).filter(|name| !name.is_empty()).map(|name| Raw::Text(name.into())).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(kind: LabelKind, raws: Vec<Raw>) -> Result<(Vec<String>, Vec<Label>), String> {
        let mut labels = Labels::new(kind, &LabelColumns::default()).unwrap();
        let mut column = labels.column();
        let rows = raws.len();
        for raw in raws {
            labels.push(raw, &mut column)?;
        }
        let names = labels.finish(&mut [&mut column]);
        let found = (0..rows).map(|row| column.get(row, names.len())).collect();
        Ok((names, found))
    }

    fn text(s: &str) -> Raw {
        Raw::Text(s.into())
    }

    #[test]
    fn names_are_sorted_and_integers_numerical() {
        let (names, labels) = read(LabelKind::Class(None), vec![text("pos"), text("neg"), text("pos")]).unwrap();
        assert_eq!(names, ["neg", "pos"]);
        assert_eq!(labels, [Label::Class(1), Label::Class(0), Label::Class(1)]);
        let (names, labels) =
            read(LabelKind::Class(None), vec![Raw::Integer(10), text("9"), Raw::Float(-1.0), Raw::Integer(9)]).unwrap();
        assert_eq!(names, ["-1", "9", "10"]);
        assert_eq!(labels, [Label::Class(2), Label::Class(1), Label::Class(0), Label::Class(1)]);
        assert_eq!(read(LabelKind::Class(None), vec![Raw::Float(-0.0), Raw::Integer(0)]).unwrap().0, ["0"]);
        assert_eq!(read(LabelKind::Class(None), vec![Raw::Bool(true), Raw::Bool(false)]).unwrap().0, ["false", "true"]);
    }

    #[test]
    fn given_names_are_closed_and_take_indices() {
        let names = || LabelKind::Class(Some(vec!["negative".into(), "positive".into()]));
        let (_, labels) = read(names(), vec![Raw::Integer(1), text("negative"), text("0")]).unwrap();
        assert_eq!(labels, [Label::Class(1), Label::Class(0), Label::Class(0)]);
        let error = read(names(), vec![text("postive")]).unwrap_err();
        assert!(error.contains("did you mean \"positive\"?"), "{error}");
        for bad in
            [Raw::Integer(2), Raw::Integer(-1), Raw::Null, Raw::Float(0.5), text(""), Raw::List(vec![]), Raw::Object]
        {
            assert!(read(names(), vec![bad.clone()]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lists_of_labels() {
        let raws = vec![Raw::List(vec![text("b"), text("a")]), text("[]"), text("c | a"), text(r#"["b"]"#)];
        let (names, labels) = read(LabelKind::Multi(None), raws).unwrap();
        assert_eq!(names, ["a", "b", "c"]);
        let flags = [[true, true, false], [false; 3], [true, false, true], [false, true, false]];
        assert_eq!(labels, flags.map(|f| Label::Multi(f.to_vec())));
        assert!(read(LabelKind::Multi(None), vec![text("a|a")]).unwrap_err().contains("twice"));
        assert!(read(LabelKind::Multi(None), vec![text("[a")]).is_err());
    }

    #[test]
    fn flag_columns() {
        let columns = LabelColumns::Many(vec!["x".into(), "y".into()]);
        let mut labels = Labels::new(LabelKind::Multi(Some(vec!["y".into(), "x".into()])), &columns).unwrap();
        assert!(matches!(labels.source(&columns), LabelSource::Many(names) if names == ["y", "x"]));
        let mut column = labels.column();
        labels.push(Raw::List(vec![text("1"), Raw::Bool(false)]), &mut column).unwrap();
        assert_eq!(column.get(0, 2), Label::Multi(vec![true, false]));
        assert!(labels.push(Raw::List(vec![text("2"), text("0")]), &mut column).unwrap_err().contains("`y`"));
        assert!(Labels::new(LabelKind::Multi(Some(vec!["z".into()])), &columns).is_err());
        assert!(Labels::new(LabelKind::Score, &columns).is_err());
    }

    #[test]
    fn scores_are_finite_numbers() {
        let (_, labels) = read(LabelKind::Score, vec![text(" 2.5"), Raw::Integer(3)]).unwrap();
        assert_eq!(labels, [Label::Score(2.5), Label::Score(3.0)]);
        for bad in [text("NaN"), text("x"), Raw::Float(1e300), Raw::Null, Raw::Bool(true)] {
            assert!(read(LabelKind::Score, vec![bad.clone()]).is_err(), "{bad:?}");
        }
    }
}
