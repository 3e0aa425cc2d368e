//! The header of a GGUF file: metadata and the index of tensors. Weights are never read here.
//!
//! Keeps true: nothing a file says is believed before it is checked. Counts are bounded by
//! `limits` and by the bytes the file really has, sums are checked, tensors lie inside the file,
//! on its alignment, and do not overlap. Neighbours: [`super::gguf_model`] turns a header into a
//! manifest; the gateway's tokeniser reads the vocabulary through [`Gguf::metadata`].
//!
//! Format: `docs/gguf.md` of the ggml project, versions 2 and 3, little-endian.

use super::header::{refuse_overlaps, shown};
use super::{DType, manifest::ManifestError};
use crate::limits;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT_DEFAULT: u64 = 32;

/// One metadata value. All integers are widened.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// A metadata array; the format allows only one element type in each.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    Unsigned(Vec<u64>),
    Signed(Vec<i64>),
    Float(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
}

/// One tensor of the index.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    pub name: String,
    pub dtype: DType,
    /// Fastest-varying first, as ggml writes them: `[columns, rows]`.
    pub dims: Vec<u64>,
    /// Absolute, in the file.
    pub offset: u64,
    pub bytes: u64,
}

/// A header that passed every check.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub metadata: Metadata,
    pub tensors: Vec<GgufTensor>,
    pub file_bytes: u64,
}

/// Metadata with typed access; errors name the file and the key.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: String,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A non-negative integer of any width.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, ManifestError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) if *n >= 0 => Ok(Some(*n as u64)),
            Some(_) => Err(self.wrong(key, "a non-negative integer")),
        }
    }

    pub fn float(&self, key: &str) -> Result<Option<f64>, ManifestError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) if x.is_finite() => Ok(Some(*x)),
            Some(_) => Err(self.wrong(key, "a finite number")),
        }
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, ManifestError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub fn string(&self, key: &str) -> Result<Option<&str>, ManifestError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, ManifestError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(list))) => Ok(Some(list)),
            Some(_) => Err(self.wrong(key, "a list of strings")),
        }
    }

    /// A list of integers, whatever their width and sign.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, ManifestError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Signed(list))) => Ok(Some(list.clone())),
            Some(Value::Array(Array::Unsigned(list))) => list
                .iter()
                .map(|n| i64::try_from(*n))
                .collect::<Result<_, _>>()
                .map(Some)
                .map_err(|_| self.wrong(key, "a list of integers below 2^63")),
            Some(_) => Err(self.wrong(key, "a list of integers")),
        }
    }

    /// A list of numbers, some perhaps not finite.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>, ManifestError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Float(list))) => Ok(Some(list.clone())),
            Some(_) => Err(self.wrong(key, "a list of numbers")),
        }
    }

    /// An error about this file.
    pub fn error(&self, reason: impl Into<String>) -> ManifestError {
        ManifestError {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }

    fn wrong(&self, key: &str, wanted: &str) -> ManifestError {
        self.error(format!("the metadata key `{key}` must be {wanted}"))
    }
}

impl Gguf {
    /// Reads and checks the header of the file at `path`.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        let fail = |reason: String| ManifestError::new(path, reason);
        let file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
        let meta = file
            .metadata()
            .map_err(|e| fail(format!("cannot be read: {e}")))?;
        if !meta.is_file() {
            return Err(fail("is not a regular file".into()));
        }
        Self::read(BufReader::with_capacity(1 << 18, file), meta.len(), path)
    }

    /// The same from any reader that holds `file_bytes` bytes; `path` is for errors.
    pub fn read(input: impl Read, file_bytes: u64, path: &Path) -> Result<Self, ManifestError> {
        let mut reader = Reader {
            input,
            position: 0,
            file_bytes,
        };
        reader
            .header(path)
            .map_err(|reason| ManifestError::new(path, reason))
    }
}

/// ggml's name for a tensor type number (`enum ggml_type` of `ggml.h`).
pub fn ggml_type_name(number: u32) -> Option<&'static str> {
    const NAMES: [&str; 41] = [
        "F32",
        "F16",
        "Q4_0",
        "Q4_1",
        "Q4_2",
        "Q4_3",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q8_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "Q8_K",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ3_XXS",
        "IQ1_S",
        "IQ4_NL",
        "IQ3_S",
        "IQ2_S",
        "IQ4_XS",
        "I8",
        "I16",
        "I32",
        "I64",
        "F64",
        "IQ1_M",
        "BF16",
        "Q4_0_4_4",
        "Q4_0_4_8",
        "Q4_0_8_8",
        "TQ1_0",
        "TQ2_0",
        "IQ4_NL_4_4",
        "IQ4_NL_4_8",
        "IQ4_NL_8_8",
        "MXFP4",
        "NVFP4",
    ];
    NAMES.get(number as usize).copied()
}

/// The number ggml gives a type we know.
pub(super) fn ggml_type_number(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::Q4_0 => 2,
        DType::Q4_1 => 3,
        DType::Q5_0 => 6,
        DType::Q5_1 => 7,
        DType::Q8_0 => 8,
        DType::Q2_K => 10,
        DType::Q3_K => 11,
        DType::Q4_K => 12,
        DType::Q5_K => 13,
        DType::Q6_K => 14,
        DType::IQ4_NL => 20,
        DType::IQ4_XS => 23,
        DType::BF16 => 30,
    }
}

fn dtype_of(number: u32, tensor: &str) -> Result<DType, String> {
    if let Some(dtype) = DType::ALL
        .into_iter()
        .find(|d| ggml_type_number(*d) == number)
    {
        return Ok(dtype);
    }
    let tensor = shown(tensor);
    match ggml_type_name(number) {
        Some(name) => Err(format!(
            "tensor {tensor} is stored as {name}, which is not supported; use a file in one of {}",
            DType::ALL.map(|d| format!("{d:?}")).join(", ")
        )),
        None => Err(format!(
            "tensor {tensor} has type number {number}, which ggml does not know; the file is \
             damaged or newer than this program"
        )),
    }
}

struct Reader<R> {
    input: R,
    position: u64,
    file_bytes: u64,
}

impl<R: Read> Reader<R> {
    fn header(&mut self, path: &Path) -> Result<Gguf, String> {
        if self.file_bytes < 24 {
            return Err("is too short to be a GGUF file; fetch it again".into());
        }
        if &self.bytes::<4>()? != MAGIC {
            return Err("is not a GGUF file (its first four bytes are not `GGUF`)".into());
        }
        match self.u32()? {
            2 | 3 => {}
            1 => return Err("is GGUF version 1; convert it to version 3".into()),
            version if matches!(version.swap_bytes(), 1..=3) => {
                return Err("is a big-endian GGUF file; convert it to little-endian".into());
            }
            version => {
                return Err(format!(
                    "is GGUF version {version}; this program reads 2 and 3"
                ));
            }
        }
        let tensor_count = self.u64()?;
        let metadata_count = self.u64()?;
        // The smallest entry: a key's length, a type and one byte; a tensor's length, dims count,
        // one dimension, type and offset.
        self.check_count(
            "metadata keys",
            metadata_count,
            limits::GGUF_METADATA_MAX,
            13,
        )?;
        self.check_count("tensors", tensor_count, limits::GGUF_TENSORS_MAX, 32)?;

        let mut values = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = self.string("a metadata key")?;
            let kind = self.u32()?;
            let value = self
                .value(kind)
                .map_err(|e| format!("metadata key {}: {e}", shown(&key)))?;
            if values.insert(key.clone(), value).is_some() {
                return Err(format!("has the metadata key {} twice", shown(&key)));
            }
        }
        let metadata = Metadata {
            path: path.display().to_string(),
            values,
        };
        let alignment = match metadata
            .unsigned("general.alignment")
            .map_err(|e| e.reason)?
        {
            None => ALIGNMENT_DEFAULT,
            Some(a) if a.is_power_of_two() && (1..=limits::GGUF_ALIGNMENT_MAX).contains(&a) => a,
            Some(a) => return Err(format!("`general.alignment` is {a}: not a sensible one")),
        };
        let tensors = self.tensors(tensor_count, alignment)?;
        Ok(Gguf {
            metadata,
            tensors,
            file_bytes: self.file_bytes,
        })
    }

    fn tensors(&mut self, count: u64, alignment: u64) -> Result<Vec<GgufTensor>, String> {
        let mut tensors = Vec::with_capacity(count as usize);
        let mut names = HashSet::new();
        for _ in 0..count {
            let name = self.string("a tensor's name")?;
            if !names.insert(name.clone()) {
                return Err(format!("has the tensor {} twice", shown(&name)));
            }
            tensors.push(self.tensor(name, alignment)?);
        }
        let data = self
            .position
            .checked_next_multiple_of(alignment)
            .ok_or("its header's length overflows")?;
        for tensor in &mut tensors {
            let end = tensor
                .offset
                .checked_add(data)
                .and_then(|start| {
                    tensor.offset = start;
                    start.checked_add(tensor.bytes)
                })
                .filter(|end| *end <= self.file_bytes);
            if end.is_none() {
                return Err(format!(
                    "tensor {} ends beyond the end of the file ({} bytes); the file is cut short \
                     or damaged: fetch it again",
                    shown(&tensor.name),
                    self.file_bytes
                ));
            }
        }
        refuse_overlaps(tensors.iter().map(|t| (t.name.as_str(), t.offset, t.bytes)))?;
        Ok(tensors)
    }

    /// One entry; `offset` is still relative to the data section.
    fn tensor(&mut self, name: String, alignment: u64) -> Result<GgufTensor, String> {
        let rank = self.u32()?;
        if !(1..=4).contains(&rank) {
            return Err(format!(
                "tensor {} has {rank} dimensions; 1 to 4 are possible",
                shown(&name)
            ));
        }
        let mut dims = Vec::with_capacity(4);
        let mut elements = 1u64;
        for _ in 0..rank {
            let dim = self.u64()?;
            elements = elements
                .checked_mul(dim)
                .filter(|_| dim > 0)
                .ok_or_else(|| format!("tensor {} has an absurd shape", shown(&name)))?;
            dims.push(dim);
        }
        let number = self.u32()?;
        let offset = self.u64()?;
        let dtype = dtype_of(number, &name)?;
        if dims[0] % dtype.block_elements() as u64 != 0 {
            return Err(format!(
                "tensor {} has rows of {} elements, not whole blocks of {dtype:?}",
                shown(&name),
                dims[0]
            ));
        }
        let bytes = dtype
            .bytes_of(elements)
            .ok_or_else(|| format!("tensor {} has an absurd shape", shown(&name)))?;
        if offset % alignment != 0 {
            return Err(format!(
                "tensor {} lies at offset {offset}, not a multiple of {alignment}",
                shown(&name)
            ));
        }
        Ok(GgufTensor {
            name,
            dtype,
            dims,
            offset,
            bytes,
        })
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Unsigned(self.bytes::<1>()?[0].into()),
            1 => Value::Signed((self.bytes::<1>()?[0] as i8).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.boolean()?),
            8 => Value::String(self.string("its value")?),
            9 => Value::Array(self.array()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(format!("has the unknown value type {other}")),
        })
    }

    fn array(&mut self) -> Result<Array, String> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let smallest = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => return Err("is a list of lists, which is not supported".into()),
            other => return Err(format!("is a list of the unknown type {other}")),
        };
        self.check_count("list elements", count, limits::GGUF_ARRAY_MAX, smallest)?;
        let mut items = (0..count).map(|_| self.value(kind));
        // One pass per element type keeps a 100,000-word vocabulary one allocation, not an enum each.
        macro_rules! collect {
            ($variant:ident) => {
                Array::$variant(
                    items
                        .by_ref()
                        .map(|item| match item {
                            Ok(Value::$variant(v)) => Ok(v),
                            Ok(_) => Err("mixes types in one list".to_owned()),
                            Err(e) => Err(e),
                        })
                        .collect::<Result<_, _>>()?,
                )
            };
        }
        Ok(match kind {
            0 | 2 | 4 | 10 => collect!(Unsigned),
            1 | 3 | 5 | 11 => collect!(Signed),
            6 | 12 => collect!(Float),
            7 => collect!(Bool),
            _ => collect!(String),
        })
    }

    /// Refuses a count that is over its limit or that the rest of the file cannot hold.
    fn check_count(&self, what: &str, count: u64, max: u64, smallest: u64) -> Result<(), String> {
        if count > max {
            return Err(format!("claims {count} {what}; at most {max} are read"));
        }
        let left = self.file_bytes - self.position;
        if count.checked_mul(smallest).is_none_or(|need| need > left) {
            return Err(format!(
                "claims {count} {what}, more than its {left} remaining bytes can hold; the file is \
                 cut short or damaged: fetch it again"
            ));
        }
        Ok(())
    }

    fn string(&mut self, what: &str) -> Result<String, String> {
        let length = self.u64()?;
        if length > limits::GGUF_STRING_BYTES_MAX {
            return Err(format!("{what} claims to be {length} bytes long"));
        }
        self.advance(length)?;
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes).map_err(read_error)?;
        String::from_utf8(bytes).map_err(|_| format!("{what} is not valid UTF-8"))
    }

    fn boolean(&mut self) -> Result<bool, String> {
        match self.bytes::<1>()?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("has {other} where 0 (false) or 1 (true) belongs")),
        }
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(read_error)?;
        Ok(bytes)
    }

    /// Accounts for `count` more bytes before they are allocated or read.
    fn advance(&mut self, count: u64) -> Result<(), String> {
        let end = self
            .position
            .checked_add(count)
            .filter(|e| *e <= self.file_bytes);
        let end = end.ok_or("ends inside its header: the file is cut short; fetch it again")?;
        if end > limits::GGUF_HEADER_BYTES_MAX {
            return Err(format!(
                "has a header of more than {} bytes",
                limits::GGUF_HEADER_BYTES_MAX
            ));
        }
        self.position = end;
        Ok(())
    }
}

fn read_error(error: std::io::Error) -> String {
    format!("cannot be read: {error}")
}
