//! Files that lie: nothing here checks what it is told to write.

/// One tensor of a safetensors header, as JSON.
pub fn tensor(name: &str, dtype: &str, shape: &[u64], begin: u64, end: u64) -> String {
    format!("{name:?}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
}

/// A header of these parts.
pub fn header(parts: &[String]) -> String {
    format!("{{{}}}", parts.join(","))
}

/// A safetensors file: length, header, data.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// An index of (tensor, shard) pairs.
pub fn index(pairs: &[(&str, &str)]) -> String {
    let map: Vec<_> = pairs.iter().map(|(tensor, shard)| format!("{tensor:?}:{shard:?}")).collect();
    format!("{{\"metadata\":{{\"total_size\":0}},\"weight_map\":{{{}}}}}", map.join(","))
}
