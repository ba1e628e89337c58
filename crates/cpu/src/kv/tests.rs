use super::*;
use crate::pool::Pool;

fn caches(window: Option<usize>, format: KvFormat) -> (Caches, CacheId) {
    let heads = KvHeads { count: 2, dim: 20, values_in_keys: false, window, native: None };
    let mut caches = Caches::default();
    let shape = CacheShape { sequences: 2, capacity: 2000, rows: 2000, stored: Stored::Heads(heads, format) };
    let id = caches.alloc(&shape).unwrap();
    (caches, id)
}

fn store(caches: &mut Caches, id: CacheId, slot: usize, position: usize, rows: usize) -> Result<(), BackendError> {
    let number = |plane: usize, i: usize| (plane * 1000 + (position * 40 + i) % 997) as f32 / 100.0;
    let [keys, values] = [0, 1].map(|plane| (0..rows * 40).map(|i| number(plane, i)).collect::<Vec<f32>>());
    let part = SequenceRows { slot, rows: 0..rows, position };
    let pool = Pool::new(2);
    let (kv, pages) = caches.heads_mut(id, "test").unwrap();
    kv.store(&part, NewRows { keys: &keys, values: &values }, pages, &pool)?;
    kv.forget(slot, pages);
    Ok(())
}

#[test]
fn keys_lie_across_and_values_along_whatever_the_cut() {
    for cuts in [&[(0, 600)][..], &[(0, 1), (1, 63), (64, 2), (66, 534)]] {
        let (mut caches, id) = caches(None, KvFormat::F32);
        for (position, rows) in cuts {
            store(&mut caches, id, 1, *position, *rows).unwrap();
        }
        let (kv, pages) = caches.heads(id, "test").unwrap();
        for position in [0, 63, 64, 65, 599] {
            for head in 0..2 {
                let block = kv.block::<F32>(pages, 1, position / KV_PAGE, head).unwrap();
                for d in 0..20 {
                    let want = |plane: usize| (plane * 1000 + (position * 40 + head * 20 + d) % 997) as f32 / 100.0;
                    let lane = position % KV_PAGE;
                    assert_eq!(block.keys[d][lane / 16][lane % 16], want(0), "{position} {head} {d}");
                    assert_eq!(block.values[lane * 2 + d / 16][d % 16], want(1), "{position} {head} {d}");
                }
            }
        }
    }
}

fn halves(vector: &[u8; 32], lane: usize) -> f32 {
    f16::from_le_bytes([vector[2 * lane], vector[2 * lane + 1]]).to_f32()
}

#[test]
fn codes_and_scales_are_those_that_the_format_defines() {
    for format in [KvFormat::F16, KvFormat::Q8] {
        let (mut caches, id) = caches(None, format);
        store(&mut caches, id, 0, 0, 70).unwrap();
        let (kv, pages) = caches.heads(id, "test").unwrap();
        let (position, head) = (67, 1);
        let mut want: Vec<f32> = (0..20).map(|d| ((position * 40 + head * 20 + d) % 997) as f32 / 100.0).collect();
        format.round_key(&mut want);
        let lane = position % KV_PAGE;
        let got = |d: usize| match format {
            KvFormat::Q8 => {
                let block = kv.block::<Q8>(pages, 0, 1, head).unwrap();
                f32::from(block.keys[d / 4][lane / 16][lane % 16 * 4 + d % 4].cast_signed())
                    * halves(&block.key_scales[lane / 16], lane % 16)
            }
            _ => halves(&kv.block::<F16>(pages, 0, 1, head).unwrap().keys[d][lane / 16], lane % 16),
        };
        assert_eq!((0..20).map(got).collect::<Vec<f32>>(), want);
    }
}

#[test]
fn values_of_q8_have_a_scale_per_group() {
    let heads = KvHeads { count: 1, dim: 80, values_in_keys: false, window: None, native: None };
    let mut caches = Caches::default();
    let stored = Stored::Heads(heads, KvFormat::Q8);
    let id = caches.alloc(&CacheShape { sequences: 1, capacity: 100, rows: 100, stored }).unwrap();
    let values: Vec<f32> = (0..80).map(|i| (i as f32).cos() * (i / 32 + 1) as f32).collect();
    let (kv, pages) = caches.heads_mut(id, "test").unwrap();
    let rows = NewRows { keys: &values, values: &values };
    kv.store(&SequenceRows { slot: 0, rows: 0..1, position: 0 }, rows, pages, &Pool::new(1)).unwrap();
    let block = caches.heads(id, "test").unwrap().0.block::<Q8>(&caches.pages, 0, 0, 0).unwrap();
    let mut want = values;
    KvFormat::Q8.round_value(&mut want);
    let got =
        |i: usize| f32::from(block.values[i / 16][i % 16].cast_signed()) * halves(&block.value_scales[i / 32 * 4], 0);
    assert_eq!((0..80).map(got).collect::<Vec<f32>>(), want);
}

#[test]
fn pages_are_taken_as_needed_and_given_back() {
    let (mut caches, id) = caches(None, KvFormat::F16);
    let page = 2 * (20 + 32) * 2 * 64;
    store(&mut caches, id, 0, 0, 65).unwrap();
    assert_eq!(caches.pages.used(), 2 * page);
    store(&mut caches, id, 1, 0, 1).unwrap();
    assert_eq!(caches.pages.used(), 3 * page);
    store(&mut caches, id, 0, 10, 1).unwrap();
    assert_eq!(caches.pages.used(), 2 * page);
    caches.truncate(0, 0);
    assert_eq!(caches.pages.used(), page);
    assert_eq!(caches.heads(id, "test").unwrap().0.held(0), 0);
}

#[test]
fn a_window_forgets_and_refuses_to_go_back_further() {
    let (mut caches, id) = caches(Some(100), KvFormat::F32);
    for position in (0..1920).step_by(64) {
        store(&mut caches, id, 0, position, 64).unwrap();
    }
    let heads = caches.heads(id, "test").unwrap().0.heads;
    let shape = CacheShape { sequences: 2, capacity: 2000, rows: 2000, stored: Stored::Heads(heads, KvFormat::F32) };
    assert!(caches.pages.used() <= shape.bytes(1920, 64), "{} {}", caches.pages.used(), shape.bytes(1920, 64));
    assert!(store(&mut caches, id, 0, 1600, 1).unwrap_err().to_string().contains("forgotten"));
    store(&mut caches, id, 0, 1700, 1).unwrap();
    let (kv, pages) = caches.heads(id, "test").unwrap();
    assert!(kv.block::<F32>(pages, 0, (1700 - 99) / KV_PAGE, 1).is_some());
    assert!(kv.block::<F32>(pages, 0, 10, 1).is_none());
    store(&mut caches, id, 0, 0, 1).unwrap();
    assert!(kv_block_is_there(&caches, id));
}

fn kv_block_is_there(caches: &Caches, id: CacheId) -> bool {
    let (kv, pages) = caches.heads(id, "test").unwrap();
    kv.block::<F32>(pages, 0, 0, 0).is_some()
}
