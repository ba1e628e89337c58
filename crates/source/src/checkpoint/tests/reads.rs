//! Positioned reads, maps, and what happens when the file changes underneath.

use super::*;
use crate::testing::{file, header, tensor};

fn two_tensors() -> Result<(tempfile::TempDir, Checkpoint)> {
    let dir = directory(&[CONFIG, ("model.safetensors", &bytes_file(&["a", "b"]))])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    Ok((dir, checkpoint))
}

#[test]
fn a_part_of_a_plane_is_read_at_its_offset() -> Result {
    let (_dir, checkpoint) = two_tensors()?;
    let entry = checkpoint.entry("b").ok_or("no b")?;
    let mut part = [0; 2];
    checkpoint.read(entry, 0, 1, &mut part)?;
    assert_eq!(part, [5, 6]);
    checkpoint.read(entry, 0, 4, &mut [])?;
    Ok(())
}

#[test]
fn reads_beyond_a_plane_are_refused_even_inside_the_file() -> Result {
    let (_dir, checkpoint) = two_tensors()?;
    let entry = checkpoint.entry("a").ok_or("no a")?;
    for (offset, len) in [(0, 5), (4, 1), (u64::MAX, 1), (u64::MAX - 1, 4)] {
        let error = checkpoint.read(entry, 0, offset, &mut vec![0; len]).err().ok_or("accepted")?;
        assert!(matches!(error, StoreError::Range { bytes: 4, .. }), "{error}");
    }
    assert!(matches!(checkpoint.read(entry, 1, 0, &mut []), Err(StoreError::Unknown { plane: 1, .. })));
    assert!(matches!(checkpoint.map(entry, 1), Err(StoreError::Unknown { .. })));
    Ok(())
}

#[test]
fn an_entry_of_another_store_is_refused() -> Result {
    let (_dir, checkpoint) = two_tensors()?;
    let mut foreign = checkpoint.entries()[0].clone();
    foreign.name = "c".to_owned();
    assert!(matches!(checkpoint.read(&foreign, 0, 0, &mut []), Err(StoreError::Unknown { .. })));
    Ok(())
}

#[test]
fn maps_share_one_mapping_and_outlive_the_checkpoint() -> Result {
    let (_dir, checkpoint) = two_tensors()?;
    let maps: Vec<Bytes> =
        checkpoint.entries().iter().map(|e| checkpoint.map(e, 0)).collect::<std::result::Result<_, _>>()?;
    drop(checkpoint);
    assert!(maps.iter().all(Bytes::is_mapped));
    assert_eq!((&*maps[0], &*maps[1]), (&[0, 1, 2, 3][..], &[4, 5, 6, 7][..]));
    assert_eq!(maps[0].as_ptr().wrapping_add(4), maps[1].as_ptr());
    Ok(())
}

#[test]
fn unaligned_values_are_copied_to_an_aligned_place() -> Result {
    use crate::testing::{file, header, tensor};
    for spaces in 0..8 {
        let header = header(&[tensor("t", "F32", &[2], 0, 8)]) + &" ".repeat(spaces);
        let bytes = file(&header, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let dir = directory(&[CONFIG, ("model.safetensors", &bytes)])?;
        let checkpoint = Checkpoint::open(dir.path())?;
        let map = checkpoint.map(&checkpoint.entries()[0], 0)?;
        assert_eq!(&*map, &[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(map.as_ptr().align_offset(4), 0);
        assert_eq!(map.is_mapped(), header.len().is_multiple_of(4));
    }
    Ok(())
}

#[test]
fn a_file_that_shrinks_while_open_gives_an_error() -> Result {
    let (dir, checkpoint) = two_tensors()?;
    let path = dir.path().join("model.safetensors");
    let len = path.metadata()?.len();
    std::fs::OpenOptions::new().write(true).open(&path)?.set_len(len - 2)?;
    let entry = checkpoint.entry("b").ok_or("no b")?;
    let message = checkpoint.read(entry, 0, 0, &mut [0; 4]).err().ok_or("accepted")?.to_string();
    crate::testing::expect(&message, &["model.safetensors: tensor `b`", "4 bytes", "download"])?;
    // The map is made after the cut, so it is shorter, and the slice is refused rather than faulting.
    assert!(matches!(checkpoint.map(entry, 0), Err(StoreError::Io { .. })));
    Ok(())
}

#[test]
fn threads_read_the_same_file_at_once() -> Result {
    let names: Vec<String> = (0..64).map(|i| format!("t{i:02}")).collect();
    let bytes = bytes_file(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let dir = directory(&[CONFIG, ("model.safetensors", &bytes)])?;
    let checkpoint = Checkpoint::open(dir.path())?;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (i, entry) in checkpoint.entries().iter().enumerate() {
                    let mut read = [0; 4];
                    checkpoint.read(entry, 0, 0, &mut read).expect("read");
                    assert_eq!(read[0], 4 * i as u8);
                    assert_eq!(&*checkpoint.map(entry, 0).expect("map"), &read);
                }
            });
        }
    });
    Ok(())
}

#[test]
fn offsets_beyond_4_gib_are_not_cut() -> Result {
    // Sparse: it takes no room on the disk.
    let (big, last) = (5_u64 << 30, [1, 2, 3, 4]);
    let parts = [tensor("big", "U8", &[big], 0, big), tensor("last", "U8", &[4], big, big + 4)];
    let start = file(&header(&parts), &[]);
    let dir = directory(&[CONFIG, ("model.safetensors", &start)])?;
    let shard = std::fs::File::options().write(true).open(dir.path().join("model.safetensors"))?;
    shard.set_len(start.len() as u64 + big)?;
    std::os::unix::fs::FileExt::write_all_at(&shard, &last, start.len() as u64 + big)?;
    std::os::unix::fs::FileExt::write_all_at(&shard, &[7], start.len() as u64 + big - 1)?;
    let checkpoint = Checkpoint::open(dir.path())?;
    let entry = |name: &str| checkpoint.entry(name).ok_or("not there");
    let (mut all, mut one) = ([0; 4], [0]);
    checkpoint.read(entry("last")?, 0, 0, &mut all)?;
    checkpoint.read(entry("big")?, 0, big - 1, &mut one)?;
    assert_eq!((all, one), (last, [7]));
    assert_eq!(&*checkpoint.map(entry("last")?, 0)?, &last);
    Ok(())
}
