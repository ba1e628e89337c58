//! [`Clock`]: the time that a machine which is not there would take for jobs that are handed to it: an accelerator, the host's
//! processor, the link between them and a disk, each doing one job after the other, beside the others.
//!
//! A job moves bytes and multiplies, whichever takes longer, after a delay of its own. What the processor reads, what the link
//! copies to the accelerator and what the disk delivers share the host's memory: each job gets an equal part of its bandwidth, or
//! less if it cannot use so much, and what one leaves the others have. Where the accelerator has no memory of its own, it
//! shares too. The clock stands still between events, so the same jobs always take the same time.
//!
//! Owns: time. Refuses: what the jobs are, and what they wait for, which whoever submits them says.

use std::collections::VecDeque;

/// What a machine reaches: bytes and multiply-adds per second, and seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// The accelerator, reading its own memory.
    pub vram: f64,
    /// The host's memory, whoever reads it.
    pub ram: f64,
    /// From the host to the accelerator.
    pub link: f64,
    /// Reading the disk.
    pub disk: f64,
    /// Multiply-adds of the accelerator.
    pub device_multiply: f64,
    /// Multiply-adds of the processor.
    pub host_multiply: f64,
    /// Seconds before an op of the accelerator begins.
    pub launch: f64,
    /// Seconds of handing a layer's tokens to the processor and its results back.
    pub handshake: f64,
    /// Whether the accelerator reads the host's memory.
    pub unified: bool,
}

/// Who does a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The accelerator.
    Device,
    /// The processor.
    Host,
    /// The copy engine.
    Link,
    /// The disk.
    Disk,
}

const ENGINES: usize = 4;

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Job {
    /// Bytes to read or copy.
    pub bytes: f64,
    /// Multiply-adds beside that.
    pub multiply_adds: f64,
    /// Seconds before it begins.
    pub delay: f64,
}

impl Job {
    /// So many bytes, and nothing else.
    #[must_use]
    pub fn bytes(bytes: f64) -> Self {
        Self { bytes, ..Self::default() }
    }
}

/// A submitted job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    engine: usize,
    number: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    delay: f64,
    bytes: f64,
    /// The most bytes per second, alone.
    most: f64,
    after: Vec<Ticket>,
}

#[derive(Clone, Debug, Default)]
struct Queue {
    jobs: VecDeque<Pending>,
    /// Jobs that ended.
    ended: u64,
    busy: f64,
}

/// Modelled time.
#[derive(Clone, Debug)]
pub struct Clock {
    speeds: Speeds,
    queues: [Queue; ENGINES],
    now: f64,
}

/// What is left of a job after rounding.
const NOTHING: f64 = 1e-15;
/// What a rate of nothing is taken to be, so that every job ends.
const SLOWEST: f64 = 1e-6;

impl Clock {
    /// At 0 seconds, with nothing to do.
    #[must_use]
    pub fn new(speeds: Speeds) -> Self {
        Self { speeds, queues: Default::default(), now: 0.0 }
    }

    /// The machine.
    #[must_use]
    pub fn speeds(&self) -> &Speeds {
        &self.speeds
    }

    /// Seconds since the start.
    #[must_use]
    pub fn now(&self) -> f64 {
        self.now
    }

    /// Seconds that an engine worked, delays included.
    #[must_use]
    pub fn busy(&self, engine: Engine) -> f64 {
        self.queues.get(engine as usize).map_or(0.0, |q| q.busy)
    }

    /// Hands a job over: it begins when its engine has ended all jobs before it, and those of `after` have ended.
    pub fn submit(&mut self, engine: Engine, job: Job, after: &[Ticket]) -> Ticket {
        let (bandwidth, multiply) = match engine {
            Engine::Device => (self.speeds.vram, self.speeds.device_multiply),
            Engine::Host => (self.speeds.ram, self.speeds.host_multiply),
            Engine::Link => (self.speeds.link, f64::INFINITY),
            Engine::Disk => (self.speeds.disk, f64::INFINITY),
        };
        let seconds = (job.bytes / bandwidth.max(SLOWEST)).max(job.multiply_adds / multiply.max(SLOWEST));
        // One that only computes waits for nobody's memory.
        let (delay, bytes) = if job.bytes > 0.0 { (job.delay, job.bytes) } else { (job.delay + seconds, 0.0) };
        let most = if seconds > 0.0 { bytes / seconds } else { f64::INFINITY };
        let after = after.iter().copied().filter(|t| !self.has_ended(*t)).collect();
        let engine = engine as usize;
        let number = self.queues.get_mut(engine).map_or(0, |queue| {
            queue.jobs.push_back(Pending { delay, bytes, most, after });
            queue.ended + queue.jobs.len() as u64 - 1
        });
        Ticket { engine, number }
    }

    /// Whether a job has ended.
    #[must_use]
    pub fn has_ended(&self, ticket: Ticket) -> bool {
        self.queues.get(ticket.engine).is_none_or(|q| q.ended > ticket.number)
    }

    /// Goes on until a job has ended; the time then.
    pub fn wait(&mut self, ticket: Ticket) -> f64 {
        while !self.has_ended(ticket) && self.step() {}
        self.now
    }

    /// Goes on until everything has ended; the time then.
    pub fn wait_all(&mut self) -> f64 {
        while self.step() {}
        self.now
    }

    /// To the next end of a delay or job; false if there is nothing to do.
    fn step(&mut self) -> bool {
        let ready: Vec<usize> = (0..ENGINES).filter(|e| self.front_may_begin(*e)).collect();
        let rates = self.rates(&ready);
        let left = |(engine, rate): (&usize, &f64)| {
            let job = self.queues.get(*engine)?.jobs.front()?;
            Some(if job.delay > 0.0 { job.delay } else { job.bytes / rate })
        };
        let Some(passed) = ready.iter().zip(&rates).filter_map(left).min_by(f64::total_cmp) else { return false };
        self.now += passed;
        for (engine, rate) in ready.iter().zip(&rates) {
            let Some(queue) = self.queues.get_mut(*engine) else { continue };
            queue.busy += passed;
            let Some(job) = queue.jobs.front_mut() else { continue };
            if job.delay > 0.0 {
                job.delay = if job.delay - passed > NOTHING { job.delay - passed } else { 0.0 };
            } else {
                let moved = rate * passed;
                job.bytes = if job.bytes - moved > NOTHING * rate { job.bytes - moved } else { 0.0 };
            }
            if job.delay == 0.0 && job.bytes == 0.0 {
                queue.jobs.pop_front();
                queue.ended += 1;
            }
        }
        true
    }

    fn front_may_begin(&self, engine: usize) -> bool {
        let front = self.queues.get(engine).and_then(|q| q.jobs.front());
        front.is_some_and(|job| job.after.iter().all(|t| self.has_ended(*t)))
    }

    /// Bytes per second of the jobs at work: those that share the host's memory get equal parts of it, none more than it can
    /// use.
    fn rates(&self, ready: &[usize]) -> Vec<f64> {
        let front = |engine: usize| self.queues.get(engine).and_then(|q| q.jobs.front());
        let alone = |engine: usize| front(engine).map_or(0.0, |job| job.most);
        let mut rates: Vec<f64> = ready.iter().map(|e| alone(*e)).collect();
        let shares = |engine: usize| {
            let moves = front(engine).is_some_and(|job| job.delay <= 0.0 && job.bytes > 0.0);
            moves && (engine != Engine::Device as usize || self.speeds.unified)
        };
        let mut waiting: Vec<usize> = (0..ready.len()).filter(|i| ready.get(*i).is_some_and(|e| shares(*e))).collect();
        let at = |rates: &[f64], i: usize| rates.get(i).copied().unwrap_or(0.0);
        waiting.sort_by(|a, b| at(&rates, *a).total_cmp(&at(&rates, *b)));
        let mut left = self.speeds.ram.max(SLOWEST);
        for (place, &i) in waiting.iter().enumerate() {
            let part = left / (waiting.len() - place) as f64;
            let rate = at(&rates, i).min(part);
            left -= rate;
            if let Some(own) = rates.get_mut(i) {
                *own = rate;
            }
        }
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speeds() -> Speeds {
        Speeds {
            vram: 100.0,
            ram: 10.0,
            link: 4.0,
            disk: 2.0,
            device_multiply: 1000.0,
            host_multiply: 50.0,
            launch: 0.0,
            handshake: 0.0,
            unified: false,
        }
    }

    #[test]
    fn a_job_takes_its_delay_and_the_longer_of_bytes_and_multiply_adds() {
        let mut clock = Clock::new(speeds());
        let job = Job { bytes: 50.0, multiply_adds: 100.0, delay: 1.0 };
        let first = clock.submit(Engine::Device, job, &[]);
        let second = clock.submit(Engine::Device, Job { multiply_adds: 2000.0, ..job }, &[]);
        assert_eq!(clock.wait(first), 1.5);
        assert_eq!(clock.wait(second), 4.5);
        let third = clock.submit(Engine::Host, Job { bytes: 0.0, multiply_adds: 100.0, delay: 0.5 }, &[second]);
        assert_eq!((clock.wait(third), clock.busy(Engine::Host), clock.busy(Engine::Device)), (7.0, 2.5, 4.5));
        assert_eq!(clock.wait(first), 7.0, "time never goes back");
    }

    #[test]
    fn copies_and_the_processor_share_the_hosts_memory_and_the_device_has_its_own() {
        let mut clock = Clock::new(speeds());
        let device = clock.submit(Engine::Device, Job::bytes(300.0), &[]);
        let host = clock.submit(Engine::Host, Job::bytes(18.0), &[]);
        let link = clock.submit(Engine::Link, Job::bytes(20.0), &[]);
        // The link takes 4 of 10; the processor 6 until it ends.
        assert_eq!([host, device, link].map(|t| clock.wait(t)), [3.0, 3.0, 5.0]);
        let mut unified = Clock::new(Speeds { unified: true, ..speeds() });
        let jobs = [Engine::Device, Engine::Host].map(|e| unified.submit(e, Job::bytes(50.0), &[]));
        assert_eq!(jobs.map(|t| unified.wait(t)), [10.0, 10.0], "half of the memory each");
        // Three that together want more than there is: disk 2, link 4, what is left for the processor.
        let mut all = Clock::new(speeds());
        let jobs = [Engine::Host, Engine::Link, Engine::Disk].map(|e| all.submit(e, Job::bytes(8.0), &[]));
        assert_eq!(jobs.map(|t| all.wait(t)), [2.0, 2.0, 4.0]);
    }

    #[test]
    fn a_job_waits_for_those_it_comes_after_while_others_go_on() {
        let mut clock = Clock::new(speeds());
        let read = clock.submit(Engine::Disk, Job::bytes(8.0), &[]);
        let host = clock.submit(Engine::Host, Job::bytes(10.0), &[read]);
        let other = clock.submit(Engine::Link, Job::bytes(4.0), &[]);
        assert_eq!([other, read, host].map(|t| clock.wait(t)), [1.0, 4.0, 5.0]);
        assert_eq!((clock.wait_all(), clock.busy(Engine::Host)), (5.0, 1.0));
    }

    #[test]
    fn whatever_the_jobs_bytes_over_bandwidth_is_the_least_they_take() {
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..50 {
            let mut clock = Clock::new(speeds());
            let (mut moved, mut tickets) = ([0.0; ENGINES], Vec::new());
            for _ in 0..40 {
                let engine = [Engine::Device, Engine::Host, Engine::Link, Engine::Disk][random(4) as usize];
                let bytes = random(100) as f64;
                moved[engine as usize] += bytes;
                let after: Vec<Ticket> = tickets.iter().copied().filter(|_| random(20) == 0).collect();
                tickets.push(clock.submit(engine, Job { bytes, multiply_adds: 0.0, delay: random(2) as f64 }, &after));
            }
            let end = clock.wait_all();
            assert!(tickets.iter().all(|t| clock.has_ended(*t)));
            let shared: f64 = moved[1..].iter().sum();
            assert!(end >= shared / 10.0 - 1e-9 && end >= moved[0] / 100.0, "{end} for {moved:?}");
        }
    }
}
