//! Conversion in parts: the same bytes as in one run, whatever the number of parts and whatever happened to them.

use crate::support::{Ran, Shape, Test, ashlar, assert_same_files, finish, write_checkpoint};
use std::path::{Path, PathBuf};

const SHAPE: Shape = Shape { hidden: 256, intermediate: 768, layers: 4, vocab: 512, shards: 2 };

fn run(src: &Path, out: &Path, extra: &[&str]) -> Ran {
    let mut command = ashlar();
    command.arg("convert").arg(src).arg("-o").arg(out).args(["--recipe", "4bit", "--shard-size", "1MiB"]).args(extra);
    finish(&mut command)
}

fn part_dir(out: &Path, index: usize, count: usize) -> PathBuf {
    let name = out.file_name().expect("a name").to_string_lossy();
    out.with_file_name(format!("{name}.part-{index}-of-{count}"))
}

#[test]
fn merged_parts_are_byte_for_byte_what_one_run_writes() -> Test {
    let dir = tempfile::tempdir()?;
    let (src, whole) = (dir.path().join("src"), dir.path().join("whole"));
    write_checkpoint(&src, SHAPE)?;
    run(&src, &whole, &[]).expect(0);
    let shards = std::fs::read_dir(&whole)?
        .filter(|e| e.as_ref().is_ok_and(|e| e.file_name().to_string_lossy().ends_with(".safetensors")))
        .count();
    assert!(shards >= 3, "{shards}");
    // The last has more parts than shards.
    for count in [1, 2, 3, shards + 2] {
        let out = dir.path().join(format!("in-{count}"));
        // Any order, any threads.
        for index in (1..=count).rev() {
            run(&src, &out, &["--part", &format!("{index}/{count}"), "--threads", "1"]).expect(0);
        }
        assert!(!out.exists());
        run(&src, &out, &["--merge"]).expect(0);
        assert_same_files(&whole, &out);
        assert!((1..=count).all(|i| !part_dir(&out, i, count).exists()), "parts are gone");
        ashlar!["verify", out].expect(0);
    }
    Ok(())
}

#[test]
fn a_merge_names_parts_that_are_missing_or_do_not_belong() -> Test {
    let dir = tempfile::tempdir()?;
    let (src, out) = (dir.path().join("src"), dir.path().join("out"));
    write_checkpoint(&src, SHAPE)?;
    run(&src, &out, &["--merge"]).expect(2).says(&["no part", "--part"]);
    run(&src, &out, &["--part", "2/3"]).expect(0);
    run(&src, &out, &["--merge"]).expect(2).says(&["2 of 3 parts", "1/3, 3/3"]);
    run(&src, &out, &["--part", "1/3"]).expect(0);
    // With another recipe it is another pack's.
    let mut other = ashlar();
    other.arg("convert").arg(&src).arg("-o").arg(&out).args([
        "--recipe",
        "8bit",
        "--shard-size",
        "1MiB",
        "--part",
        "3/3",
    ]);
    finish(&mut other).expect(0);
    run(&src, &out, &["--merge"]).expect(2).says(&["part-3-of-3", "another", "recipe"]);
    run(&src, &out, &["--part", "3/3"]).expect(2).says(&["part-3-of-3", "--force"]);
    run(&src, &out, &["--part", "3/3", "--force"]).expect(0);
    run(&src, &out, &["--merge"]).expect(0);
    ashlar!["verify", out, "--against", src].expect(0);
    for bad in ["0/3", "4/3", "x", "1/0", "1"] {
        run(&src, &out, &["--part", bad]).expect(2).says(&["I/N"]);
    }
    Ok(())
}

#[test]
fn a_complete_part_is_left_alone_and_a_damaged_one_is_mended() -> Test {
    let dir = tempfile::tempdir()?;
    let (src, whole, out) = (dir.path().join("src"), dir.path().join("whole"), dir.path().join("out"));
    write_checkpoint(&src, SHAPE)?;
    run(&src, &whole, &[]).expect(0);
    run(&src, &out, &["--part", "1/2"]).expect(0);
    run(&src, &out, &["--part", "1/2"]).expect(0).says(&["complete already"]);
    run(&src, &out, &["--part", "2/2"]).expect(0);
    // A bit is lost on the way to the machine that merges.
    let folder = part_dir(&out, 2, 2);
    let shard = std::fs::read_dir(&folder)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "safetensors"));
    let shard = shard.ok_or("a shard")?;
    let mut bytes = std::fs::read(&shard)?;
    *bytes.last_mut().ok_or("bytes")? ^= 1;
    std::fs::write(&shard, bytes)?;
    run(&src, &out, &["--merge"]).expect(0).says(&["done again"]);
    assert_same_files(&whole, &out);
    Ok(())
}

#[test]
fn a_merge_that_was_killed_goes_on() -> Test {
    let dir = tempfile::tempdir()?;
    let (src, whole, out) = (dir.path().join("src"), dir.path().join("whole"), dir.path().join("out"));
    write_checkpoint(&src, SHAPE)?;
    run(&src, &whole, &[]).expect(0);
    for part in ["1/2", "2/2"] {
        run(&src, &out, &["--part", part]).expect(0);
    }
    // What a kill between two moves leaves: a shard of a part lies in OUT.partial already. The merge before it has made that
    // directory, with its journal; taking the manifest of the second part away stops it there.
    let (second, hidden) = (part_dir(&out, 2, 2).join("part.json"), dir.path().join("part.json"));
    std::fs::rename(&second, &hidden)?;
    run(&src, &out, &["--merge"]).expect(2).says(&["2/2"]);
    std::fs::rename(&hidden, &second)?;
    run(&src, &out, &["--merge"]).expect(0);
    assert_same_files(&whole, &out);
    run(&src, &out, &["--merge"]).expect(2).says(&["no part"]);
    Ok(())
}

/// Moves are killed for real, at whatever point the first shard has moved and the last has not.
#[test]
fn a_merge_that_is_killed_while_shards_move_is_started_again() -> Test {
    let dir = tempfile::tempdir()?;
    let (src, whole, kept) = (dir.path().join("src"), dir.path().join("whole"), dir.path().join("kept"));
    write_checkpoint(&src, Shape::MEDIUM)?;
    run(&src, &whole, &[]).expect(0);
    for part in ["1/2", "2/2"] {
        run(&src, &kept, &["--part", part]).expect(0);
    }
    let shards = |at: &Path| {
        let names = std::fs::read_dir(at).into_iter().flatten().filter_map(|e| e.ok()?.file_name().into_string().ok());
        names.filter(|n| n.ends_with(".safetensors")).count()
    };
    let all = shards(&whole);
    let mut midway = 0;
    for attempt in 0..30 {
        let out = dir.path().join(format!("out-{attempt}"));
        for index in [1, 2] {
            let (from, to) = (part_dir(&kept, index, 2), part_dir(&out, index, 2));
            std::fs::create_dir(&to)?;
            for (name, bytes) in crate::support::listing(&from) {
                std::fs::write(to.join(name), bytes)?;
            }
        }
        let partial = dir.path().join(format!("out-{attempt}.partial"));
        let mut merge = ashlar();
        merge.arg("convert").arg(&src).arg("-o").arg(&out).args([
            "--recipe",
            "4bit",
            "--shard-size",
            "1MiB",
            "--merge",
            "-q",
        ]);
        let mut child = merge.spawn()?;
        while child.try_wait()?.is_none() && shards(&partial) == 0 {}
        child.kill()?;
        child.wait()?;
        let moved = shards(&partial);
        midway += usize::from(moved > 0 && moved < all);
        if !out.exists() {
            run(&src, &out, &["--merge"]).expect(0);
        }
        assert_same_files(&whole, &out);
        assert!(!partial.exists() && (1..=2).all(|i| !part_dir(&out, i, 2).exists()));
        if midway >= 2 {
            return Ok(());
        }
    }
    panic!("no kill hit a merge of {all} shards on its way");
}
