//! The header of one safetensors file: names, types, shapes and places of its tensors.
//!
//! Keeps true: as `gguf`, nothing is believed before it is checked; tensors lie inside the file
//! and do not overlap. Neighbour: `hf` joins the files of a folder into a manifest.
//!
//! Format (the safetensors project's README): a little-endian u64, that many bytes of JSON, data.

use super::header::{refuse_overlaps, shown};
use super::{DType, manifest::ManifestError};
use crate::limits;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, de::IgnoredAny};
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// One tensor; `offset` is absolute in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct SafeTensor {
    pub name: String,
    /// As the file names it, e.g. `BF16`.
    pub type_name: String,
    /// `None` for a type this program does not compute with.
    pub dtype: Option<DType>,
    pub shape: Vec<u64>,
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's map in file order, duplicates refused (a plain map would keep the last one).
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut names = HashSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("{} twice", shown(&name))));
                    }
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        input.deserialize_map(Entries)
    }
}

/// Reads and checks the header of the file at `path`.
pub fn open(path: &Path) -> Result<Vec<SafeTensor>, ManifestError> {
    let fail = |reason: String| ManifestError::new(path, reason);
    let unreadable = |e: std::io::Error| fail(format!("cannot be read: {e}"));
    let file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(fail("is not a regular file".into()));
    }
    read(file, meta.len()).map_err(fail)
}

/// The same from any reader that holds `file_bytes` bytes; the error is why it is not valid.
pub fn read(mut file: impl Read, file_bytes: u64) -> Result<Vec<SafeTensor>, String> {
    const CUT: &str = "is cut short or damaged: fetch it again";
    let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
    if file_bytes < 8 {
        return Err(CUT.into());
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > limits::SAFETENSORS_HEADER_BYTES_MAX {
        return Err(format!(
            "claims a header of {length} bytes: not a safetensors file, or a damaged one"
        ));
    }
    if length > file_bytes - 8 {
        return Err(CUT.into());
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(unreadable)?;
    let header: Header = serde_json::from_slice(&json)
        .map_err(|e| format!("has a header that is not valid: {e}"))?;
    if header.0.len() as u64 > limits::GGUF_TENSORS_MAX {
        return Err(format!("claims {} tensors", header.0.len()));
    }
    let data = 8 + length;
    let mut tensors = Vec::with_capacity(header.0.len());
    for (name, entry) in header.0 {
        tensors.push(tensor(name, entry, data, file_bytes)?);
    }
    let held = tensors.iter().filter(|t| t.bytes > 0);
    refuse_overlaps(held.map(|t| (t.name.as_str(), t.offset, t.bytes)))?;
    Ok(tensors)
}

fn tensor(name: String, entry: Entry, data: u64, file_bytes: u64) -> Result<SafeTensor, String> {
    let (begin, end) = entry.data_offsets;
    if begin > end || end > file_bytes - data {
        return Err(format!(
            "tensor {} ends beyond the end of the file ({file_bytes} bytes); the file is cut short \
             or damaged: fetch it again",
            shown(&name)
        ));
    }
    let elements = entry.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
    let elements =
        elements.ok_or_else(|| format!("tensor {} has an absurd shape", shown(&name)))?;
    let dtype = match entry.dtype.as_str() {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::BF16),
        _ => None,
    };
    if let Some(dtype) = dtype
        && dtype.bytes_of(elements) != Some(end - begin)
    {
        return Err(format!(
            "tensor {} takes {} bytes, which does not fit its shape",
            shown(&name),
            end - begin
        ));
    }
    Ok(SafeTensor {
        name,
        type_name: entry.dtype,
        dtype,
        shape: entry.shape,
        offset: data + begin,
        bytes: end - begin,
    })
}
