//! Memory stays in proportion to the real size of the files. One test, since it measures the whole process.
#![forbid(unsafe_code)]

use ashlar_source::Checkpoint;
use std::error::Error;

/// Peak resident bytes of this process, where the system tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[test]
fn hostile_files_cost_no_more_memory_than_their_size_justifies() -> Result<(), Box<dyn Error>> {
    let Some(before) = peak() else {
        println!("SKIPPED memory: no /proc/self/status here");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("config.json"), "{}")?;
    let path = dir.path().join("model.safetensors");
    let mut largest = 0;
    let mut refuse = |bytes: &[u8]| -> Result<(), Box<dyn Error>> {
        largest = largest.max(bytes.len());
        std::fs::write(&path, bytes)?;
        Checkpoint::open(dir.path()).err().map(drop).ok_or_else(|| "accepted".into())
    };
    let file = |json: &str| [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();

    // Lengths without the bytes.
    for claim in [99_000_000_u64, 1 << 35, u64::MAX] {
        refuse(&[&claim.to_le_bytes()[..], b"{\"a\":"].concat())?;
    }
    // Shapes, ranges and lists that promise much.
    refuse(&file(r#"{"a":{"dtype":"F64","shape":[1099511627776],"data_offsets":[0,8796093022208]}}"#))?;
    let zeros = "0,".repeat(1 << 20);
    refuse(&file(&format!(r#"{{"a":{{"dtype":"U8","shape":[{zeros}0],"data_offsets":[0,0]}}}}"#)))?;
    refuse(&file(&format!(r#"{{"a":{{"dtype":"U8","shape":[{}"#, "[".repeat(1 << 21))))?;
    let name = "n".repeat(1 << 21);
    refuse(&file(&format!(r#"{{"{name}":{{"dtype":"U8","shape":[],"data_offsets":[0,1]}}}}"#)))?;
    // Many tiny tensors: the densest honest header there is, made dishonest by its last range.
    let many: String =
        (0..30_000).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#)).collect();
    refuse(&file(&format!(r#"{{{many}"x":{{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}}}"#)))?;

    let used = peak().unwrap_or_default().saturating_sub(before);
    let bound = 12 * largest as u64 + (4 << 20);
    assert!(used <= bound, "{used} bytes for files of at most {largest}, expected at most {bound}");
    Ok(())
}
