//! Writing safetensors that Transformers reads.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::{Dtype, View};
use temper_peft::file::atomically;
use temper_peft::parameters::Values;

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
/// files with `model.safetensors.index.json`. A reader sees whole files only.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save(directory: &Path, tensors: &BTreeMap<String, Values>, dtype: SaveDtype) -> Result<(), Error> {
    save_shards(directory, tensors, dtype, SHARD_BYTES)
}

fn save_shards(
    directory: &Path,
    tensors: &BTreeMap<String, Values>,
    dtype: SaveDtype,
    shard_bytes: usize,
) -> Result<(), Error> {
    let mut shards: Vec<(usize, Vec<(&String, Stored)>)> = Vec::new();
    for (name, values) in tensors {
        let tensor = Stored { values, dtype };
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
        write(&directory.join("model.safetensors"), tensors)?;
        return remove(&directory.join("model.safetensors.index.json"));
    }
    let (count, mut total, mut map) = (shards.len(), 0, BTreeMap::new());
    for (number, (bytes, shard)) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        total += bytes;
        map.extend(shard.iter().map(|(name, _)| ((*name).clone(), file.clone())));
        write(&directory.join(file), shard)?;
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
    let path = directory.join("model.safetensors.index.json");
    atomically(&path, |file| fs::write(file, format!("{index:#}\n")))?;
    remove(&directory.join("model.safetensors"))
}

fn write(path: &Path, tensors: Vec<(&String, Stored)>) -> Result<(), Error> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    atomically(path, |file| {
        safetensors::serialize_to_file(tensors, Some(metadata), file).map_err(std::io::Error::other)?;
        readable(file)
    })?;
    Ok(())
}

/// safetensors makes files that nobody but their owner may read; a model is shared like any other file.
fn readable(file: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let _ = file;
    Ok(())
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

/// A tensor that is encoded when it is written, one at a time.
struct Stored<'a> {
    values: &'a Values,
    dtype: SaveDtype,
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
        let values = self.values.data.iter();
        Cow::Owned(match self.dtype {
            SaveDtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            SaveDtype::F16 => values.flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            SaveDtype::BF16 => values.flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.values.data.len() * if self.dtype == SaveDtype::F32 { 4 } else { 2 }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Weights;

    #[test]
    fn what_was_saved_is_read_whole_or_in_shards() {
        let values = |n: usize| Values { shape: vec![n], data: (0..n).map(|i| i as f32).collect() };
        let tensors: BTreeMap<_, _> = (1..6).map(|n| (format!("t{n}"), values(n))).collect();
        let directory = tempfile::tempdir().unwrap();
        for bytes in [1000, 24, 1000] {
            for dtype in [SaveDtype::F32, SaveDtype::BF16, SaveDtype::F16, SaveDtype::F32] {
                save_shards(directory.path(), &tensors, dtype, bytes).unwrap();
                let weights = Weights::open(directory.path()).unwrap();
                assert!(tensors.iter().all(|(name, values)| weights.read(name).unwrap() == values.data));
                assert_eq!(weights.names().count(), 5);
            }
        }
        let partial = fs::read_dir(directory.path()).unwrap().flatten();
        assert!(partial.into_iter().all(|file| !file.file_name().to_string_lossy().contains("partial")));
    }
}
