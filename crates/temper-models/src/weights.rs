//! Reading safetensors, one file or several, through a memory map.
//!
//! Only safetensors: PyTorch's own format is a pickle, and reading a pickle can run code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::Metadata};
use serde::Deserialize;
use temper_peft::file::to_f32;

use crate::Error;

/// The tensors of a checkpoint. Opening reads the headers alone.
#[derive(Debug)]
pub struct Weights {
    directory: PathBuf,
    shards: Vec<Shard>,
    /// Tensor name → shard.
    index: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
    /// Where the values begin.
    start: usize,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens the checkpoint in `directory`: `model.safetensors`, or the files named by `model.safetensors.index.json`.
    ///
    /// # Errors
    ///
    /// When there is none (the message says why other formats are not read), a file cannot be read, or a header lies:
    /// truncated, overlapping or oversized tensors.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        let files = if single.exists() {
            vec![single]
        } else if index.exists() {
            shard_paths(directory, &index)?
        } else {
            return Err(no_weights(directory));
        };
        let shards = files.iter().map(|path| Shard::open(path)).collect::<Result<Vec<_>, _>>()?;
        let mut index = BTreeMap::new();
        for (number, shard) in shards.iter().enumerate() {
            for name in shard.metadata.tensors().into_keys() {
                if index.insert(name.clone(), number).is_some() {
                    return Err(Error::Malformed {
                        path: shard.path.clone(),
                        reason: format!("tensor `{name}` is also in another shard"),
                    });
                }
            }
        }
        Ok(Self { directory: directory.into(), shards, index })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// A tensor's shape, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|(_, info)| info.shape.as_slice())
    }

    /// A tensor's dtype, if there is one of that name.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.find(name).map(|(_, info)| info.dtype)
    }

    /// The most bytes of the files that are in memory while they are read: one tensor's, or all where pages cannot be let
    /// go.
    pub fn mapped(&self) -> u64 {
        let size = |name: &String| self.find(name).map_or(0, |(_, info)| info.data_offsets.1 - info.data_offsets.0);
        match cfg!(unix) {
            true => self.index.keys().map(size).max().unwrap_or(0) as u64,
            false => self.shards.iter().map(|shard| shard.map.len() as u64).sum(),
        }
    }

    /// A tensor's values in row-major order, as f32.
    ///
    /// # Errors
    ///
    /// When there is no such tensor, its dtype is not F32, F16 or BF16, or a value is not finite.
    pub fn read(&self, name: &str) -> Result<Vec<f32>, Error> {
        let Some((shard, info)) = self.find(name) else {
            return Err(Error::NoSuchTensor { path: self.directory.clone(), name: name.into() });
        };
        let (begin, end) = info.data_offsets;
        let values = to_f32(info.dtype, &shard.map[shard.start + begin..shard.start + end]);
        // Nobody reads it again soon: its pages need not stay beside the values.
        // SAFETY: the map is shared with the file and never written, so that the pages come back as they are.
        #[cfg(unix)]
        let _ = unsafe {
            shard.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, shard.start + begin, end - begin)
        };
        let (path, name) = (|| shard.path.clone(), || name.to_owned());
        let dtype = || format!("{:?}", info.dtype);
        let values = values.ok_or_else(|| Error::Dtype { path: path(), name: name(), dtype: dtype() })?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => Err(Error::NotFinite { path: path(), name: name(), at, value: values[at] }),
        }
    }

    /// Whether two tensors have the same shape and values.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), of either.
    pub fn equal(&self, a: &str, b: &str) -> Result<bool, Error> {
        Ok(self.shape(a) == self.shape(b) && self.read(a)? == self.read(b)?)
    }

    /// The safetensors files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.path.clone()).collect()
    }

    fn find(&self, name: &str) -> Option<(&Shard, &safetensors::tensor::TensorInfo)> {
        let shard = &self.shards[*self.index.get(name)?];
        Some((shard, shard.metadata.info(name)?))
    }
}

impl Shard {
    fn open(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { action: "read", path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only. A file that another process shortens meanwhile ends this one with a bus error;
        // checkpoints are replaced by renaming, which leaves an open map as it was.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| Error::Malformed {
            path: path.into(),
            reason: format!("{error} (the file has {} bytes; was its download cut short?)", map.len()),
        })?;
        Ok(Self { path: path.into(), start: header + 8, map, metadata })
    }
}

fn shard_paths(directory: &Path, path: &Path) -> Result<Vec<PathBuf>, Error> {
    let malformed = |reason: String| Error::Malformed { path: path.into(), reason };
    let text = fs::read_to_string(path).map_err(|source| Error::Io { action: "read", path: path.into(), source })?;
    let index: Index = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(name) = files.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        return Err(malformed(format!("shard `{name}` is not the name of a file beside it")));
    }
    Ok(files.into_iter().map(|name| directory.join(name)).collect())
}

fn no_weights(directory: &Path) -> Error {
    let other = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.pt", "model.pt", "tf_model.h5"]
        .into_iter()
        .find(|name| directory.join(name).exists());
    let advice = match other {
        Some(name @ "tf_model.h5") => format!(
            " (`{name}` is not read; convert it with Transformers: load with from_tf=True, then save_pretrained)"
        ),
        Some(name) => format!(
            ", and `{name}` is not read because it is a pickle, which can run code; convert it where you trust it \
             (Transformers: from_pretrained, then save_pretrained), or ask for the safetensors pull request on the Hub"
        ),
        None => String::new(),
    };
    Error::NoWeights { path: directory.into(), advice }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
        let views = tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.to_vec(), b).unwrap()));
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    #[test]
    fn half_types_are_widened_and_others_refused() {
        let directory = tempfile::tempdir().unwrap();
        let half = half::f16::from_f32(1.5).to_le_bytes();
        let brain = half::bf16::from_f32(-2.0).to_le_bytes();
        let tensors: [(&str, Dtype, &[usize], &[u8]); 3] =
            [("h", Dtype::F16, &[1], &half), ("b", Dtype::BF16, &[1], &brain), ("i", Dtype::I64, &[1], &[0; 8])];
        write(&directory.path().join("model.safetensors"), &tensors);
        let weights = Weights::open(directory.path()).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["b", "h", "i"]);
        assert_eq!((weights.read("h").unwrap(), weights.read("b").unwrap()), (vec![1.5], vec![-2.0]));
        let message = weights.read("i").unwrap_err().to_string();
        assert!(message.contains("`i`") && message.contains("I64"), "{message}");
        assert_eq!(weights.files().len(), 1);
    }

    #[test]
    fn shards_are_joined() {
        let directory = tempfile::tempdir().unwrap();
        let index = directory.path().join("model.safetensors.index.json");
        write(&directory.path().join("a.safetensors"), &[("x", Dtype::F32, &[1], &[0; 4])]);
        write(&directory.path().join("b.safetensors"), &[("y", Dtype::F32, &[2], &[0; 8])]);
        fs::write(&index, r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#).unwrap();
        let weights = Weights::open(directory.path()).unwrap();
        assert_eq!(
            (weights.shape("x"), weights.shape("y"), weights.shape("z")),
            (Some(&[1][..]), Some(&[2][..]), None)
        );
        fs::write(&index, r#"{"weight_map": {"x": "../a.safetensors"}}"#).unwrap();
        assert!(Weights::open(directory.path()).unwrap_err().to_string().contains("../a.safetensors"));
    }

    #[test]
    fn lying_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.safetensors");
        write(&path, &[("x", Dtype::F32, &[2], &[0; 8])]);
        let bytes = fs::read(&path).unwrap();
        let header = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &[0; 8]].concat();
        for bad in [
            bytes[..bytes.len() - 1].to_vec(),
            bytes[..4].to_vec(),
            [&[255; 8], &bytes[8..]].concat(),
            header(
                r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            ),
            header(r#"{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#),
            header(r#"{"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#),
        ] {
            fs::write(&path, bad).unwrap();
            let message = Weights::open(directory.path()).unwrap_err().to_string();
            assert!(message.contains("model.safetensors"), "{message}");
        }
    }

    #[test]
    fn pickles_are_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("pytorch_model.bin"), b"x").unwrap();
        let message = Weights::open(directory.path()).unwrap_err().to_string();
        assert!(message.contains("pickle") && message.contains("save_pretrained"), "{message}");
    }
}
