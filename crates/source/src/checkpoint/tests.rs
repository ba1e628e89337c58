use super::*;
use std::error::Error;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

#[test]
fn every_fixture_opens_with_all_its_tensors() -> Result {
    for name in ["tiny/llama", "tiny/qwen2", "tiny/qwen3", "tiny/qwen3_moe", "tiny/mixtral", "demo-moe"] {
        let dir = fixture(name);
        let checkpoint = Checkpoint::open(&dir)?;
        let bytes = std::fs::read(dir.join("model.safetensors"))?;
        let reference = safetensors::SafeTensors::deserialize(&bytes)?;
        assert_eq!(checkpoint.entries().len(), reference.len(), "{name}");
        for entry in checkpoint.entries() {
            let view = reference.tensor(&entry.name)?;
            assert_eq!(entry.shape, view.shape());
            let mut read = vec![0; view.data().len()];
            checkpoint.read(entry, 0, 0, &mut read)?;
            assert_eq!(read, view.data());
            assert_eq!(&*checkpoint.map(entry, 0)?, view.data());
        }
    }
    Ok(())
}
