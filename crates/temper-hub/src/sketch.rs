//! Enough of a model to plan a run with: its weights as files that have names and shapes, and no values.
//!
//! A safetensors file begins with the length of its header, 8 bytes, and the header, which names each tensor, its type, shape
//! and place (<https://huggingface.co/docs/safetensors>). A sketch of it is as long and has that beginning; the rest is a
//! hole that takes no room on the disk.

use std::{fs, io::Write as _, path::Path};

use crate::{Error, Hub, ModelFiles, PullOptions, Result, TreeFile, Verify, download::Download, tree::hostile};

/// Bytes that are asked for first: enough for the header of most models.
const FIRST: u64 = 100_000;

/// The longest header that the format allows, in bytes.
const LONGEST: u64 = 100_000_000;

impl Hub {
    /// Whether all files of the model are in the cache.
    pub fn has_model(&self, model: &ModelFiles) -> bool {
        let folder = self.folder(&model.listing.pinned.repo);
        let there = |file: &TreeFile| {
            let blob = fs::metadata(folder.blob(file.checksum().hex()));
            blob.is_ok_and(|data| data.len() == file.size) || folder.shared(file).is_some()
        };
        model.files.iter().all(there)
    }

    /// Lays the files of a model into `dir`, which exists: those that describe it as they are, the weights as sketches. Of
    /// the weights only the headers are fetched, and nothing verifies them but [`Hub::is_of`] later.
    ///
    /// # Errors
    /// When the hub cannot be read, or a header is not one.
    pub fn sketch(&self, model: &ModelFiles, dir: &Path) -> Result<()> {
        for file in &model.described.files {
            let to = dir.join(&file.path);
            let parent = to.parent().unwrap_or(dir);
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            fs::copy(&file.local, &to).map_err(Error::io("write", &to))?;
        }
        self.online(format!("read the header of the weights of {}", model.listing.pinned.repo))?;
        let options = PullOptions::default();
        let weights: Vec<&TreeFile> = model.weight_files().collect();
        crate::pull::each(&weights, options.parallel, |file| {
            let beginning = self.header(model, file)?;
            let path = dir.join(&file.path);
            let mut sketch = fs::File::create(&path).map_err(Error::io("write", &path))?;
            sketch.write_all(&beginning).and_then(|()| sketch.set_len(file.size)).map_err(Error::io("write", &path))
        })?;
        Ok(())
    }

    /// The length and the header of a file of weights.
    fn header(&self, model: &ModelFiles, file: &TreeFile) -> Result<Vec<u8>> {
        let pinned = &model.listing.pinned;
        let folder = self.folder(&pinned.repo);
        let (verify, advance) = (Verify::FirstUse, &|_| {});
        let download = Download { http: &self.http, folder: &folder, pinned, verify, advance };
        let mut beginning = download.beginning(file, FIRST)?;
        let stated = beginning.first_chunk().map(|length| u64::from_le_bytes(*length));
        let length = stated.filter(|length| *length <= LONGEST && length + 8 <= file.size);
        let reason = "it does not begin as safetensors do";
        let length = length.ok_or_else(|| hostile("file", &file.path, &self.http, reason))? + 8;
        if length > beginning.len() as u64 {
            beginning = download.beginning(file, length)?;
        }
        beginning.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(beginning)
    }

    /// Whether the weights in `dir` begin as their sketches in `sketch` do.
    ///
    /// # Errors
    /// When a file cannot be read, or the beginnings differ: then what was planned is not what was fetched.
    pub fn is_of(&self, model: &ModelFiles, sketch: &Path, dir: &Path) -> Result<()> {
        use std::io::Read as _;
        let beginning = |path: &Path, length: u64| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let file = fs::File::open(path).map_err(Error::io("read", path))?;
            file.take(length).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
            Ok(bytes)
        };
        for name in &model.weights {
            let [sketch, path] = [sketch, dir].map(|dir| dir.join(name));
            let length = beginning(&sketch, 8)?.first_chunk().map_or(0, |length| u64::from_le_bytes(*length)) + 8;
            if beginning(&sketch, length)? != beginning(&path, length)? {
                let reason = "its header is not the one that the run was planned with";
                return Err(hostile("file", name, &self.http, reason));
            }
        }
        Ok(())
    }
}
