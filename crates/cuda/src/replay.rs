//! Recordings: a step of decoding starts the same kernels with the same arguments as the step before, since what differs
//! between them (tokens, positions) lies in device memory. So the second time it is recorded, and from then on started as one
//! graph. A step may be several stretches, one per result that somebody reads in its midst.
//!
//! While launches are as recorded they are only compared, and run together when somebody wants a result. The first one that
//! differs runs what was held back, then itself, as if there had been no recording. Nothing above this file knows.

use crate::Error;
use crate::device::{Device, GraphId, Launch};
use std::collections::VecDeque;

/// Launches of a stretch between two readings.
type Launches = Vec<(Launch, Vec<u8>)>;

/// Stretches longer than this are not remembered.
const MOST_LAUNCHES: usize = 1 << 14;
/// Recordings that are kept: a layer whose activations cross to another device is a stretch of its own.
const MOST_RECORDINGS: usize = 512;
/// Launches of all recordings together, which the driver holds memory for.
const MOST_RECORDED: usize = 1 << 15;

struct Recording {
    launches: Launches,
    graph: GraphId,
}

/// How far the present stretch is.
enum State {
    /// Kernels run as they are started; what was started is remembered.
    Direct(Launches),
    /// So many launches are as in the recording, and held back.
    Following(usize, usize),
    /// Kernels run as they are started, and there is more between them than launches.
    Unrecorded,
}

/// Recordings and the present stretch.
pub struct Replay {
    recordings: Vec<Recording>,
    /// The last stretches that were not replayed, the newest last; no more than [`MOST_LAUNCHES`] launches.
    before: VecDeque<Launches>,
    state: State,
}

impl Default for Replay {
    fn default() -> Self {
        Self { recordings: Vec::new(), before: VecDeque::new(), state: State::Direct(Vec::new()) }
    }
}

impl Replay {
    /// Starts a kernel, or holds it back where a recording has it.
    ///
    /// # Safety
    /// As [`Device::launch`], until the stretch ends.
    ///
    /// # Errors
    /// What the device reports.
    pub unsafe fn launch(&mut self, device: &mut dyn Device, launch: Launch, args: &[u8]) -> Result<(), Error> {
        let same = |recorded: &(Launch, Vec<u8>)| recorded.0 == launch && recorded.1 == args;
        if let State::Direct(log) = &self.state
            && log.is_empty()
            && let Some(found) = self.recordings.iter().position(|r| r.launches.first().is_some_and(same))
        {
            self.state = State::Following(found, 1);
            return Ok(());
        }
        if let State::Following(which, at) = &mut self.state {
            if self.recordings.get(*which).and_then(|r| r.launches.get(*at)).is_some_and(same) {
                *at += 1;
                return Ok(());
            }
            let done = self.run_held_back(device)?;
            self.state = State::Direct(done);
        }
        if let State::Direct(log) = &mut self.state {
            log.push((launch, args.to_vec()));
            if log.len() > MOST_LAUNCHES {
                self.state = State::Unrecorded;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { device.launch(launch, args) }
    }

    /// What comes next must find all launches so far begun: a write between them, or memory changing hands.
    ///
    /// # Errors
    /// What the device reports.
    pub fn in_order(&mut self, device: &mut dyn Device) -> Result<(), Error> {
        match &self.state {
            State::Direct(log) if log.is_empty() => return Ok(()),
            State::Following(..) => {
                self.run_held_back(device)?;
            }
            _ => {}
        }
        self.state = State::Unrecorded;
        Ok(())
    }

    /// Ends the stretch: everything is begun, and what came twice in a row is recorded.
    ///
    /// # Errors
    /// What the device reports.
    pub fn finish(&mut self, device: &mut dyn Device) -> Result<(), Error> {
        match std::mem::replace(&mut self.state, State::Direct(Vec::new())) {
            State::Unrecorded => Ok(()),
            State::Direct(log) => {
                if log.len() < 2 {
                    return Ok(());
                }
                match self.before.iter().position(|before| *before == log) {
                    Some(at) => {
                        self.before.remove(at);
                        self.record(device, log)
                    }
                    None => {
                        self.remember(log);
                        Ok(())
                    }
                }
            }
            State::Following(which, at) => match self.recordings.get(which) {
                Some(recording) if recording.launches.len() == at => device.replay(recording.graph),
                _ => {
                    self.state = State::Following(which, at);
                    self.run_held_back(device)?;
                    self.state = State::Direct(Vec::new());
                    Ok(())
                }
            },
        }
    }

    /// Runs what was held back, and tells what it was.
    fn run_held_back(&mut self, device: &mut dyn Device) -> Result<Launches, Error> {
        let State::Following(which, at) = self.state else { return Ok(Vec::new()) };
        // Whatever happens, nothing runs twice.
        self.state = State::Unrecorded;
        let launches = self.recordings.get(which).and_then(|r| r.launches.get(..at)).unwrap_or_default().to_vec();
        for (launch, args) in &launches {
            // SAFETY: they were started in this stretch, whose callers' promises hold until it ends.
            unsafe { device.launch(*launch, args) }?;
        }
        Ok(launches)
    }

    fn remember(&mut self, log: Launches) {
        self.before.push_back(log);
        while self.before.iter().map(Vec::len).sum::<usize>() > MOST_LAUNCHES || self.before.len() > MOST_RECORDINGS {
            self.before.pop_front();
        }
    }

    fn record(&mut self, device: &mut dyn Device, launches: Launches) -> Result<(), Error> {
        let recorded = |all: &[Recording]| all.iter().map(|r| r.launches.len()).sum::<usize>();
        while self.recordings.len() >= MOST_RECORDINGS
            || !self.recordings.is_empty() && recorded(&self.recordings) + launches.len() > MOST_RECORDED
        {
            device.forget(self.recordings.remove(0).graph);
        }
        // One whose beginning is the same would never be found.
        if let Some(old) = self.recordings.iter().position(|r| r.launches.first() == launches.first()) {
            device.forget(self.recordings.remove(old).graph);
        }
        device.begin_recording()?;
        let started = launches.iter().try_for_each(|(launch, args)| {
            // SAFETY: recording runs nothing; what is replayed was compared with launches made under the same promise.
            unsafe { device.launch(*launch, args) }
        });
        let graph = device.end_recording()?;
        started?;
        self.recordings.push(Recording { launches, graph });
        Ok(())
    }

    /// How many recordings there are; for tests.
    #[cfg(test)]
    pub fn recordings(&self) -> usize {
        self.recordings.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Crossing, KernelId, Mapped, Mark, Room};
    use crate::modules::Module;

    /// Writes down what runs.
    #[derive(Default)]
    struct Paper {
        ran: Vec<u32>,
        recording: Option<Vec<u32>>,
        graphs: Vec<Vec<u32>>,
    }

    impl Device for Paper {
        fn describe(&self) -> String {
            "paper".into()
        }
        fn generation(&self) -> String {
            "paper".into()
        }
        fn room(&self) -> Result<Room, Error> {
            Ok(Room { free: 0, total: 0 })
        }
        fn reserve(&mut self, _bytes: u64) -> Result<u64, Error> {
            Ok(0)
        }
        fn kernel(&mut self, _module: &'static Module, _name: &str, _shared: u32) -> Result<KernelId, Error> {
            Ok(KernelId(0))
        }
        unsafe fn launch(&mut self, launch: Launch, _args: &[u8]) -> Result<(), Error> {
            self.recording.as_mut().unwrap_or(&mut self.ran).push(launch.kernel.0);
            Ok(())
        }
        unsafe fn upload(&mut self, _to: u64, _bytes: &[u8]) -> Result<(), Error> {
            Ok(())
        }
        unsafe fn download(&mut self, _from: u64, _bytes: &mut [u8]) -> Result<(), Error> {
            Ok(())
        }
        unsafe fn copy(&mut self, _to: u64, _from: u64, _bytes: u64) -> Result<(), Error> {
            Ok(())
        }
        fn begin_recording(&mut self) -> Result<(), Error> {
            self.recording = Some(Vec::new());
            Ok(())
        }
        fn end_recording(&mut self) -> Result<GraphId, Error> {
            self.graphs.extend(self.recording.take());
            Ok(GraphId(self.graphs.len() as u32 - 1))
        }
        fn replay(&mut self, graph: GraphId) -> Result<(), Error> {
            let launches = self.graphs[graph.0 as usize].clone();
            self.ran.push(1000);
            self.ran.extend(launches);
            Ok(())
        }
        fn forget(&mut self, _graph: GraphId) {}
    }

    impl Crossing for Paper {
        fn mapped(&mut self, _bytes: usize) -> Result<Mapped, Error> {
            unreachable!("nothing crosses")
        }
        fn busy(&mut self) -> Result<bool, Error> {
            Ok(false)
        }
        fn mark(&mut self) -> Result<Mark, Error> {
            Ok(Mark(0))
        }
        unsafe fn fill(&mut self, _after: Option<Mark>, _parts: &[(u64, &[u8])]) -> Result<Mark, Error> {
            Ok(Mark(0))
        }
        fn wait_for(&mut self, _mark: Mark) -> Result<(), Error> {
            Ok(())
        }
        unsafe fn read_beside(&mut self, _from: u64, _bytes: &mut [u8]) -> Result<(), Error> {
            Ok(())
        }
    }

    fn start(replay: &mut Replay, paper: &mut Paper, kernel: u32) {
        let launch = Launch { kernel: KernelId(kernel), grid: [1; 3], threads: 32, shared: 0 };
        // SAFETY: nothing runs.
        unsafe { replay.launch(paper, launch, &[kernel as u8]) }.unwrap();
    }

    fn stretch(replay: &mut Replay, paper: &mut Paper, kernels: &[u32]) -> Vec<u32> {
        paper.ran.clear();
        kernels.iter().for_each(|k| start(replay, paper, *k));
        replay.finish(paper).unwrap();
        paper.ran.clone()
    }

    #[test]
    fn what_comes_twice_is_recorded_and_then_replayed_whole() {
        let (mut replay, mut paper) = (Replay::default(), Paper::default());
        assert_eq!(stretch(&mut replay, &mut paper, &[1, 2, 3]), [1, 2, 3]);
        assert_eq!((stretch(&mut replay, &mut paper, &[1, 2, 3]), replay.recordings()), (vec![1, 2, 3], 1));
        assert_eq!(stretch(&mut replay, &mut paper, &[1, 2, 3]), [1000, 1, 2, 3]);
    }

    #[test]
    fn stretches_that_take_turns_are_all_recorded() {
        let (mut replay, mut paper) = (Replay::default(), Paper::default());
        let stretches: [&[u32]; 3] = [&[1, 2, 3], &[4, 5], &[6]];
        for _ in 0..2 {
            for kernels in stretches {
                assert_eq!(stretch(&mut replay, &mut paper, kernels), kernels);
            }
        }
        assert_eq!(stretch(&mut replay, &mut paper, &[1, 2, 3]), [1000, 1, 2, 3]);
        assert_eq!(stretch(&mut replay, &mut paper, &[4, 5]), [1000, 4, 5]);
        assert_eq!((stretch(&mut replay, &mut paper, &[6]), replay.recordings()), (vec![6], 2));
    }

    #[test]
    fn a_stretch_that_turns_off_or_ends_early_runs_once_and_in_order() {
        let (mut replay, mut paper) = (Replay::default(), Paper::default());
        for _ in 0..2 {
            stretch(&mut replay, &mut paper, &[1, 2, 3]);
        }
        assert_eq!(stretch(&mut replay, &mut paper, &[1, 2, 4, 5]), [1, 2, 4, 5]);
        assert_eq!(stretch(&mut replay, &mut paper, &[1, 2]), [1, 2]);
        assert_eq!(stretch(&mut replay, &mut paper, &[1, 2, 3, 6]), [1, 2, 3, 6]);
        assert_eq!(stretch(&mut replay, &mut paper, &[1, 2, 3]), [1000, 1, 2, 3]);
    }

    #[test]
    fn what_must_be_in_order_runs_what_was_held_back() {
        let (mut replay, mut paper) = (Replay::default(), Paper::default());
        for _ in 0..2 {
            stretch(&mut replay, &mut paper, &[1, 2, 3]);
        }
        paper.ran.clear();
        start(&mut replay, &mut paper, 1);
        assert!(paper.ran.is_empty());
        replay.in_order(&mut paper).unwrap();
        assert_eq!(paper.ran, [1]);
        start(&mut replay, &mut paper, 2);
        replay.finish(&mut paper).unwrap();
        assert_eq!(paper.ran, [1, 2]);
    }
}
