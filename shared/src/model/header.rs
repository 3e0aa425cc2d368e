//! What the headers of GGUF and safetensors are refused for alike. Neighbours: `gguf`, `safetensors`.

/// A name from a file, quoted and cut so that an error stays one readable line.
pub(super) fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        text.push_str("...");
    }
    format!("`{text}`")
}

/// Refuses tensors, as (name, offset, bytes), that share a byte of the file. Each is already known
/// to end inside it, so that no sum overflows.
pub(super) fn refuse_overlaps<'a>(
    tensors: impl Iterator<Item = (&'a str, u64, u64)>,
) -> Result<(), String> {
    let mut order: Vec<_> = tensors.collect();
    order.sort_by_key(|(_, offset, _)| *offset);
    for pair in order.windows(2) {
        let ((first, offset, bytes), (second, next, _)) = (pair[0], pair[1]);
        if offset + bytes > next {
            return Err(format!(
                "tensors {} and {} overlap",
                shown(first),
                shown(second)
            ));
        }
    }
    Ok(())
}
