//! Writing safetensors that Transformers reads.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::{Dtype, View};
use temper_peft::parameters::Deferred;

use crate::Error;

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveDtype {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    BF16,
}

/// The most bytes of values in one file; a single tensor may be larger.
pub const SHARD_BYTES: usize = 5_000_000_000;

/// Writes `tensors`, by name, as `model.safetensors` into `directory`, which must exist; above [`SHARD_BYTES`] as several
/// files with `model.safetensors.index.json`. A reader sees whole files only. Values are on the host one tensor at a time.
///
/// # Errors
///
/// When a file cannot be written, or a device fails.
pub fn save(directory: &Path, tensors: &BTreeMap<String, Deferred>, dtype: SaveDtype) -> Result<(), Error> {
    save_shards(directory, tensors, dtype, SHARD_BYTES)
}

fn save_shards(
    directory: &Path,
    tensors: &BTreeMap<String, Deferred>,
    dtype: SaveDtype,
    shard_bytes: usize,
) -> Result<(), Error> {
    let failure = RefCell::default();
    let mut shards: Vec<(usize, Vec<(&String, Stored)>)> = Vec::new();
    for (name, values) in tensors {
        let tensor = Stored { name, values, dtype, failure: &failure };
        let bytes = tensor.data_len();
        match shards.last_mut() {
            Some((total, shard)) if *total + bytes <= shard_bytes => {
                *total += bytes;
                shard.push((name, tensor));
            }
            _ => shards.push((bytes, vec![(name, tensor)])),
        }
    }
    if shards.len() <= 1 {
        let tensors = shards.pop().unwrap_or_default().1;
        write(&directory.join("model.safetensors"), tensors, &failure)?;
        return remove(&directory.join("model.safetensors.index.json"));
    }
    let (count, mut total, mut map) = (shards.len(), 0, BTreeMap::new());
    for (number, (bytes, shard)) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        total += bytes;
        map.extend(shard.iter().map(|(name, _)| ((*name).clone(), file.clone())));
        write(&directory.join(file), shard, &failure)?;
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
    let path = directory.join("model.safetensors.index.json");
    temper_files::write(&path, |file| fs::write(file, format!("{index:#}\n"))).map_err(failed(&path))?;
    remove(&directory.join("model.safetensors"))
}

fn write(path: &Path, tensors: Vec<(&String, Stored)>, failure: &Failure) -> Result<(), Error> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = temper_files::write(path, |file| {
        // safetensors makes files that nobody but their owner may read; a model is shared like any other file.
        let usual = fs::File::create(file)?.metadata()?.permissions();
        safetensors::serialize_to_file(tensors, Some(metadata), file).map_err(std::io::Error::other)?;
        failure.take().map_or_else(|| fs::set_permissions(file, usual), |error| Err(std::io::Error::other(error)))
    });
    written.map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { action: "write", path: path.into(), source }
}

/// Removes what an earlier save left and a reader would prefer.
fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { action: "remove", path: path.into(), source })
        }
        _ => Ok(()),
    }
}

/// What went wrong when a tensor was read, of which safetensors cannot hear.
type Failure = RefCell<Option<temper_peft::Error>>;

/// A tensor that is read and encoded when it is written, one at a time.
struct Stored<'a> {
    name: &'a str,
    values: &'a Deferred,
    dtype: SaveDtype,
    failure: &'a Failure,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            SaveDtype::F32 => Dtype::F32,
            SaveDtype::F16 => Dtype::F16,
            SaveDtype::BF16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.values.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let read = self.values.read().map(|values| values.data);
        let values = read.unwrap_or_else(|error| {
            self.failure.replace(Some(error));
            Vec::new()
        });
        let most = match self.dtype {
            SaveDtype::F16 => half::f16::MAX.to_f32(),
            SaveDtype::F32 | SaveDtype::BF16 => f32::MAX,
        };
        if let Some(value) = values.iter().find(|value| value.is_finite() && value.abs() > most) {
            let (path, value) = (self.name.to_owned(), *value);
            self.failure.replace(Some(temper_peft::Error::Beyond { path, value, most }));
        }
        let values = values.iter();
        Cow::Owned(match self.dtype {
            SaveDtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            SaveDtype::F16 => values.flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            SaveDtype::BF16 => values.flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.values.shape.iter().product::<usize>() * if self.dtype == SaveDtype::F32 { 4 } else { 2 }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Weights;
    use temper_peft::parameters::Values;

    #[test]
    fn what_f16_does_not_hold_is_refused() {
        let values = || Ok(vec![1.0, -7e4]);
        let tensors = BTreeMap::from([("t".to_owned(), Deferred::new(vec![2], values))]);
        let directory = tempfile::tempdir().unwrap();
        save(directory.path(), &tensors, SaveDtype::BF16).unwrap();
        fs::remove_file(directory.path().join("model.safetensors")).unwrap();
        let error = format!("{:?}", save(directory.path(), &tensors, SaveDtype::F16).unwrap_err());
        assert!(error.contains("-70000"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_read_leaves_no_file() {
        let lost =
            || Err(temper_peft::Error::Device { path: "t".into(), failed: temper_device::Failed::new("it is gone") });
        let tensors = BTreeMap::from([("t".to_owned(), Deferred::new(vec![2], lost))]);
        let directory = tempfile::tempdir().unwrap();
        let error = save(directory.path(), &tensors, SaveDtype::F32).unwrap_err();
        assert!(format!("{error:?}").contains("it is gone"), "{error:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_saved_is_read_whole_or_in_shards() {
        let values = |n: usize| Values { shape: vec![n], data: (0..n).map(|i| i as f32).collect() };
        let tensors: BTreeMap<_, _> = (1..6).map(|n| (format!("t{n}"), Deferred::from(values(n)))).collect();
        let directory = tempfile::tempdir().unwrap();
        for bytes in [1000, 24, 1000] {
            for dtype in [SaveDtype::F32, SaveDtype::BF16, SaveDtype::F16, SaveDtype::F32] {
                save_shards(directory.path(), &tensors, dtype, bytes).unwrap();
                let weights = Weights::open(directory.path()).unwrap();
                assert!(
                    tensors.iter().all(|(name, values)| weights.read(name).unwrap() == values.read().unwrap().data)
                );
                assert_eq!(weights.names().count(), 5);
            }
        }
        let partial = fs::read_dir(directory.path()).unwrap().flatten();
        assert!(partial.into_iter().all(|file| !file.file_name().to_string_lossy().contains("partial")));
    }
}
