use super::*;
use std::fs;

fn store(dir: &Path, limit: u64, model: &str) -> PrefixStore {
    PrefixStore::open(&PrefixOptions { dir: dir.to_owned(), limit, model: model.into() }, "f16").unwrap()
}

fn tokens(text: u32, blocks: usize) -> Vec<u32> {
    (0..blocks * BLOCK).map(|i| if i == 0 { text } else { i as u32 }).collect()
}

fn keys(store: &PrefixStore, tokens: &[u32]) -> Vec<Key> {
    let mut keys = Vec::new();
    store.extend(&mut keys, tokens);
    keys
}

/// Bytes that tell which block they are.
fn payload(number: u64) -> Vec<u8> {
    (0..1000u64).map(|i| (i * 7 + number) as u8).collect()
}

fn put_all(store: &PrefixStore, keys: &[Key]) {
    keys.iter().zip(0..).for_each(|(key, number)| store.put(*key, number, payload(number)));
    store.flush();
}

#[test]
fn a_key_tells_the_model_and_every_token_so_far() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (a, b) = (store(dirs[0].path(), 1 << 20, "a"), store(dirs[1].path(), 1 << 20, "b"));
    let all = keys(&a, &tokens(1, 3));
    assert_eq!(all.len(), 3);
    let mut begun = keys(&a, &tokens(1, 3)[..BLOCK + 5]);
    assert_eq!(begun, all[..1]);
    a.extend(&mut begun, &tokens(1, 3));
    assert_eq!(begun, all);
    // The second block has the same tokens in all of them.
    let others = [keys(&a, &tokens(2, 3)), keys(&b, &tokens(1, 3))];
    assert!(others.iter().flatten().all(|key| !all.contains(key)));
}

#[test]
fn what_was_written_is_there_after_a_restart_and_what_is_damaged_or_foreign_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path(), 1 << 20, "a");
    let all = keys(&first, &tokens(1, 6));
    put_all(&first, &all);
    assert_eq!((first.known(&all), first.stats().blocks), (6, 6));
    assert!(!first.wants(&all[0]));
    drop(first);
    let path = |i: usize| dir.path().join(file::name(&all[i]));
    let mut changed = fs::read(path(1)).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(path(1), changed).unwrap();
    // Under the name of another block.
    fs::copy(path(0), path(2)).unwrap();
    fs::write(path(3), fs::read(path(3)).unwrap().split_last().unwrap().1).unwrap();
    fs::write(path(4), b"short").unwrap();
    fs::write(dir.path().join("notes.txt"), b"a user's").unwrap();
    fs::write(path(5).with_extension("kv-unfinished"), b"half").unwrap();
    let again = store(dir.path(), 1 << 20, "a");
    assert_eq!((again.stats().blocks, again.stats().damaged), (4, 3));
    assert_eq!(again.get(&all[0]).unwrap(), payload(0));
    assert!(again.get(&all[1]).is_none() && again.get(&all[2]).is_none());
    assert_eq!((again.known(&all), again.stats().damaged), (1, 5));
    assert_eq!(again.get(&all[5]).unwrap(), payload(5));
    assert!(dir.path().join("notes.txt").exists() && !path(5).with_extension("kv-unfinished").exists());
    // Damaged ones are written anew.
    assert!(again.wants(&all[1]));
    put_all(&again, &all);
    assert_eq!(again.known(&all), 6);
    assert_eq!(again.get(&all[3]).unwrap(), payload(3));
}

#[test]
fn another_models_file_is_not_read_whatever_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path(), 1 << 20, "a");
    let key = keys(&first, &tokens(1, 1))[0];
    put_all(&first, &[key]);
    drop(first);
    let other = store(dir.path(), 1 << 20, "b");
    assert_eq!(other.stats().blocks, 1);
    assert!(other.get(&key).is_none());
}

#[test]
fn files_stay_below_the_limit_and_the_end_of_what_was_not_used_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 8 * (1000 + file::HEAD as u64);
    let first = store(dir.path(), limit, "a");
    let (old, new, last) = (keys(&first, &tokens(1, 4)), keys(&first, &tokens(2, 4)), keys(&first, &tokens(3, 3)));
    put_all(&first, &old);
    put_all(&first, &new);
    first.used(&old);
    put_all(&first, &last);
    assert_eq!((first.known(&old), first.known(&last), first.stats().evicted), (4, 3, 3));
    first.used(&last);
    drop(first);
    // A smaller limit: whole beginnings are left, not ends.
    let again = store(dir.path(), limit / 2, "a");
    let on_disk: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk <= limit / 2, "{on_disk}");
    assert_eq!((again.known(&last), again.known(&old)), (3, 1));
    // One that can never fit is not written.
    drop(again);
    let tiny = store(dir.path(), 100, "a");
    tiny.put(old[3], 3, payload(3));
    tiny.flush();
    assert_eq!((tiny.stats().blocks, tiny.stats().skipped), (0, 1));
}

#[test]
fn two_processes_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = store(dir.path(), 1 << 20, "a");
    let options = PrefixOptions { dir: dir.path().to_owned(), limit: 1, model: "a".into() };
    let error = PrefixStore::open(&options, "f16").err().unwrap().to_string();
    assert!(error.contains("another process"), "{error}");
}

#[test]
fn no_more_waits_than_there_is_room_for() {
    let mut index = Index::default();
    assert!(index.queue(Key([1; 32]), 60, 100) && !index.queue(Key([2; 32]), 60, 100));
    assert!(!index.wants(&Key([1; 32])) && index.wants(&Key([2; 32])));
    index.written(Key([1; 32]), 60, None);
    assert!(index.wants(&Key([1; 32])) && index.queue(Key([2; 32]), 60, 100));
    assert_eq!(index.stats().skipped, 2);
}
