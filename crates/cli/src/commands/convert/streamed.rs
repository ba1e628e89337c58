//! Converting while downloading: every shard is fetched, what it completes is converted, and it is dropped.

use crate::exit::Failure;
use crate::hub;
use crate::model::{Model, Source, SourceArgs};
use anyhow::anyhow;
use ashlar_convert::{Conversion, ConvertError, Plan};
use ashlar_hub::{HubError, Stream};
use ashlar_tensor::{Report, Silent, TensorStore};
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;

/// Shards that may wait to be converted while the next one is downloaded.
const WAITING: usize = 1;

/// The directory that shards come to: `OUT.download`, beside `OUT`.
fn download_dir(out: &Path) -> PathBuf {
    let out: PathBuf = out.components().collect();
    let mut name = out.file_name().map_or_else(|| OsString::from("pack"), OsString::from);
    name.push(".download");
    out.with_file_name(name)
}

/// Opens a repository of the hub for this: its headers are read.
///
/// # Errors
/// If `src` is no repository, or cannot be had.
pub fn open(src: &Path, out: &Path, args: SourceArgs) -> Result<Model, Failure> {
    let Some(repo) = hub::repository(src)? else {
        return Err(Failure::usage(anyhow!(
            "--stream is for models of the hub (hf:ORG/NAME); {} lies here",
            src.display()
        )));
    };
    let stream = Stream::open(hub::open()?, &repo, &download_dir(out), &hub::progress()).map_err(hub::failure)?;
    Model::of(src, Source::Stream(Box::new(stream)), args)
}

/// Converts every record that is left, shard by shard.
///
/// # Errors
/// [`ConvertError`]: the conversion's, or what the hub says.
pub fn drive(
    plan: &Plan,
    conversion: &Conversion<'_>,
    stream: &Stream,
    memory: u64,
    report: &dyn Report,
) -> Result<(), ConvertError> {
    let shards_of = |tensors: Vec<&str>| -> BTreeSet<usize> {
        let entries = tensors.into_iter().filter_map(|name| stream.entry(name));
        entries.flat_map(|entry| stream.shards_of(entry)).collect()
    };
    let needs: Vec<BTreeSet<usize>> = plan.records().map(shards_of).collect();
    let done = conversion.done();
    let mut left: Vec<usize> = (0..needs.len()).filter(|r| !done.contains(r)).collect();
    let needed = |records: &[usize]| -> BTreeSet<usize> {
        records.iter().filter_map(|r| needs.get(*r)).flatten().copied().collect()
    };
    let wanted: Vec<usize> = needed(&left).into_iter().collect();
    std::thread::scope(|scope| {
        let (send, shards) = sync_channel::<Result<usize, HubError>>(WAITING);
        scope.spawn(move || {
            for shard in wanted {
                let fetched = stream.fetch(shard, &Silent).map(|()| shard);
                let last = fetched.is_err();
                if send.send(fetched).is_err() || last {
                    break;
                }
            }
        });
        let mut here = BTreeSet::new();
        for shard in shards {
            here.insert(shard.map_err(supply)?);
            let whole = |r: &usize| needs.get(*r).is_some_and(|n| n.is_subset(&here));
            let (ready, rest): (Vec<usize>, Vec<usize>) = left.iter().partition(|r| whole(r));
            conversion.records(&ready.into_iter().collect::<HashSet<_>>(), memory, report)?;
            left = rest;
            let still = needed(&left);
            let over: Vec<usize> = here.difference(&still).copied().collect();
            for shard in over {
                here.remove(&shard);
                stream.release(shard).map_err(supply)?;
            }
        }
        Ok(())
    })
}

fn supply(error: HubError) -> ConvertError {
    ConvertError::Supply(Box::new(error))
}
