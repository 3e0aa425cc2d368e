//! What quantised blocks stand for is what ggml says: `reference.bin`, which `make.py` wrote.

use trireme_shared::model::blocks::decode;
use trireme_shared::model::{DType, gguf};

const REFERENCE: &[u8] = include_bytes!("reference.bin");
const VALUES: usize = 1024;

#[test]
fn blocks_of_every_quantised_type_are_what_ggml_takes_them_for() {
    let mut rest = REFERENCE;
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let (kind, count) = (number(0), number(4) as usize);
        let name = gguf::ggml_type_name(kind).unwrap();
        let dtype = DType::ALL.into_iter().find(|d| format!("{d:?}") == name);
        let dtype = dtype.unwrap_or_else(|| panic!("{name} is not known"));
        let (blocks, after) = rest[8..].split_at(count * dtype.block_bytes());
        let (values, after) = after.split_at(VALUES * 4);
        rest = after;

        let want: Vec<f32> = values
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(decode(dtype, blocks), want, "{name}");
        seen.push(dtype);
    }
    let quantised = DType::ALL.into_iter().filter(|d| d.block_elements() > 1);
    for dtype in quantised {
        assert!(seen.contains(&dtype), "no reference for {dtype:?}");
    }
}
