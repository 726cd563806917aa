//! Safetensors files of which one tensor at a time is in memory, and their checksums.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, Metadata};
use serde::{Deserialize, Serialize};

const DTYPES: [(DType, Dtype); 5] = [
    (DType::F32, Dtype::F32),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
];

/// What a tensor is, its values aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outline {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl Outline {
    pub fn of(data: &TensorData) -> Self {
        Self { dtype: data.dtype(), shape: data.shape().to_vec() }
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

impl std::fmt::Display for Outline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of shape {:?}", self.dtype, self.shape)
    }
}

/// What tensors are, by name.
pub(crate) type Outlines = BTreeMap<String, Outline>;

/// A file whose tensors are handed over one by one, in any order.
pub(crate) struct Writer {
    file: File,
    path: PathBuf,
    /// Of those that are missing: where they go, and what they are.
    missing: BTreeMap<String, (u64, Outline)>,
}

impl Writer {
    pub fn create(path: &Path, tensors: &Outlines) -> io::Result<Self> {
        // What has the largest elements first, so that all are aligned.
        let mut sorted: Vec<(String, Outline)> = tensors.clone().into_iter().collect();
        sorted.sort_by_key(|(_, outline)| std::cmp::Reverse(outline.dtype.size()));
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        let mut missing = BTreeMap::new();
        for (name, outline) in sorted {
            let start = end;
            end += outline.bytes();
            let known = DTYPES.iter().find(|(burn, _)| *burn == outline.dtype);
            let (_, dtype) = known.ok_or_else(|| io::Error::other(format!("`{name}` is {:?}", outline.dtype)))?;
            let info = serde_json::json!({ "dtype": dtype, "shape": outline.shape, "data_offsets": [start, end] });
            header.insert(name.clone(), info);
            missing.insert(name, (start as u64, outline));
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = File::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        missing.values_mut().for_each(|(start, _)| *start += 8 + header.len() as u64);
        Ok(Self { file, path: path.into(), missing })
    }

    /// Writes a tensor.
    pub fn put(&mut self, name: &str, data: &TensorData) -> io::Result<()> {
        let place = self.missing.remove(name).filter(|(_, outline)| *outline == Outline::of(data));
        let (start, _) = place.ok_or_else(|| io::Error::other(format!("`{name}` is not what was announced")))?;
        self.file.seek(SeekFrom::Start(start))?;
        self.file.write_all(data.as_bytes())
    }

    /// Flushes the file, which has all its tensors.
    pub fn finish(self) -> io::Result<Sum> {
        if let Some(name) = self.missing.keys().next() {
            return Err(io::Error::other(format!("`{name}` is missing")));
        }
        self.file.sync_all()?;
        sum(&mut File::open(self.path)?)
    }
}

/// A file, any tensor of which can be read.
pub(crate) struct Reader {
    file: File,
    /// Where each begins, and what it is.
    tensors: BTreeMap<String, (u64, Outline)>,
}

impl Reader {
    /// Opens a file that is known to be whole. What is wrong with its header is an error of kind `InvalidData`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        let mut header = Vec::new();
        (&file).take(length).read_to_end(&mut header)?;
        let metadata: Metadata = serde_json::from_slice(&header)?;
        let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let known = DTYPES.iter().find(|(_, dtype)| *dtype == info.dtype);
            let (dtype, _) = known.ok_or_else(|| invalid(format!("`{name}` is {:?}", info.dtype)))?;
            let outline = Outline { dtype: *dtype, shape: info.shape.clone() };
            Ok((name, (8 + length + info.data_offsets.0 as u64, outline)))
        };
        let tensors = metadata.tensors().into_iter().map(place).collect::<io::Result<_>>()?;
        Ok(Self { file, tensors })
    }

    /// What there is.
    pub fn outlines(&self) -> impl Iterator<Item = (&str, &Outline)> {
        self.tensors.iter().map(|(name, (_, outline))| (name.as_str(), outline))
    }

    /// Reads the tensors that are `wanted`.
    pub fn read(&mut self, wanted: impl Fn(&str) -> bool) -> io::Result<BTreeMap<String, TensorData>> {
        let mut all = BTreeMap::new();
        for (name, (start, outline)) in self.tensors.iter().filter(|(name, _)| wanted(name)) {
            let mut bytes = vec![0; outline.bytes()];
            self.file.seek(SeekFrom::Start(*start))?;
            self.file.read_exact(&mut bytes)?;
            let data = TensorData::from_bytes_vec(bytes, outline.shape.clone(), outline.dtype);
            all.insert(name.clone(), data);
        }
        Ok(all)
    }
}

/// Length and checksum of a file, against accidents and not against attackers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub bytes: u64,
    pub checksum: String,
}

/// The checksum of tensors, of their names and every bit.
pub(crate) fn checksum(tensors: &[(String, TensorData)]) -> String {
    let mut state = START;
    for (name, data) in tensors {
        state = [name.as_bytes(), data.as_bytes()].into_iter().fold(state, mix);
    }
    format!("{state:016x}")
}

const START: u64 = 0xcbf2_9ce4_8422_2325;

fn mix(state: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(state, |state, word| {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        (state ^ u64::from_le_bytes(padded)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

/// Length and checksum of what can be read: words of 8 bytes, each xored into the state, which is then multiplied and
/// rotated.
pub(crate) fn sum(reader: &mut impl Read) -> io::Result<Sum> {
    let (mut bytes, mut state, mut buffer) = (0, START, vec![0; 1 << 20]);
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match reader.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        state = mix(state, &buffer[..filled]);
        bytes += filled as u64;
        if filled < buffer.len() {
            return Ok(Sum { bytes, checksum: format!("{state:016x}") });
        }
    }
}
