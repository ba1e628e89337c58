use super::*;
use crate::prefixes::{BLOCK, PrefixOptions};
use crate::{GenerateOptions, OpenOptions, Sampling};
use ashlar_tensor::Silent;
use std::path::PathBuf;
use std::sync::Mutex;

/// What one request was told.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    text: String,
    choices: Vec<Choice>,
    end: Option<Result<Finished, String>>,
}

struct Listener {
    told: Told,
    /// Leaves after so many tokens.
    patience: usize,
}

impl Sink for Listener {
    fn piece(&mut self, piece: Piece) -> bool {
        let mut told = self.told.0.lock().unwrap();
        told.text.push_str(&piece.text());
        told.choices.extend(piece.tokens);
        told.choices.len() < self.patience
    }

    fn finished(self: Box<Self>, how: Result<Finished, String>) {
        let mut told = self.told.0.lock().unwrap();
        assert!(told.end.replace(how).is_none(), "told twice");
    }
}

impl Told {
    fn text(&self) -> String {
        self.0.lock().unwrap().text.clone()
    }

    fn end(&self) -> Finished {
        self.0.lock().unwrap().end.clone().expect("ended").expect("no error")
    }
}

fn engine(sequences: usize, queue: usize, kv_budget: Option<u64>) -> Engine {
    engine_of(256, sequences, queue, kv_budget)
}

fn engine_of(context: usize, sequences: usize, queue: usize, kv_budget: Option<u64>) -> Engine {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/demo-moe");
    let options = OpenOptions {
        sequences,
        kv_budget,
        context: Some(context),
        chunk: 32,
        threads: Some(2),
        ..OpenOptions::default()
    };
    let model = Model::open(&dir, &options, &Silent).unwrap();
    Engine::new(model, EngineOptions { queue, chunk: 32, shared_chunk: 8 }).unwrap()
}

const PROMPTS: [&str; 6] = [
    "And it came to pass in those days, that",
    "The",
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was",
    "He said unto them, Go",
    "The words of the",
    "And when the king heard the words of the book of the law, he",
];

fn request(engine: &Engine, prompt: &str, max_tokens: usize) -> (Request, Told) {
    let told = Told::default();
    let options =
        GenerateOptions { max_tokens: Some(max_tokens), ignore_stop_tokens: true, ..GenerateOptions::default() };
    let prompt = engine.tokenizer().encode(prompt, true).unwrap();
    let sink = Box::new(Listener { told: told.clone(), patience: usize::MAX });
    (Request { prompt, options, logprobs: None, sink }, told)
}

fn submit(engine: &mut Engine, prompt: &str, max_tokens: usize) -> (Ticket, Told) {
    let (request, told) = request(engine, prompt, max_tokens);
    (engine.submit(request).unwrap(), told)
}

fn drain(engine: &mut Engine) {
    while engine.step().unwrap() {}
    assert!(engine.is_idle());
}

fn alone(prompt: &str, max_tokens: usize) -> String {
    let mut engine = engine(1, 1, None);
    let (_, told) = submit(&mut engine, prompt, max_tokens);
    drain(&mut engine);
    told.text()
}

#[test]
fn a_text_is_the_same_alone_and_among_others_that_come_and_go() {
    let expected: Vec<String> = PROMPTS.iter().map(|p| alone(p, 24)).collect();
    let mut engine = engine(4, 16, None);
    let mut all = Vec::new();
    for round in 0..3 {
        for (prompt, expected) in PROMPTS.iter().zip(&expected) {
            all.push((submit(&mut engine, prompt, 24).1, expected));
            for _ in 0..round {
                engine.step().unwrap();
            }
        }
    }
    drain(&mut engine);
    for (told, expected) in all {
        assert_eq!(told.text(), *expected);
        assert_eq!(told.end().reason, StopReason::MaxTokens);
    }
    let stats = engine.stats();
    assert_eq!((stats.ended, stats.running, stats.waiting, stats.tokens_out), (18, 0, 0, 18 * 24));
}

#[test]
fn with_far_too_little_memory_all_requests_still_end_with_the_same_texts() {
    let expected: Vec<String> = PROMPTS.iter().map(|p| alone(p, 60)).collect();
    // Enough for about one request and a half: prompts fit side by side, answers do not.
    let one = engine(1, 1, None).model().kv().bytes(100, 32);
    let mut engine = engine(4, 16, Some(one + one / 2));
    let all: Vec<Told> = PROMPTS.iter().map(|p| submit(&mut engine, p, 60).1).collect();
    let mut order: Vec<usize> = Vec::new();
    while engine.step().unwrap() {
        let stats = engine.stats();
        assert!(stats.kv_by_cache.iter().sum::<u64>() <= stats.kv_most);
        let ended = |i: &usize| all[*i].0.lock().unwrap().end.is_some() && !order.contains(i);
        let new: Vec<usize> = (0..all.len()).filter(ended).collect();
        order.extend(new);
    }
    // The first two fit side by side, the second of them is the shorter; who waits comes in turn.
    assert_eq!(order, [1, 0, 2, 3, 4, 5]);
    assert!(engine.is_idle() && engine.stats().preempted > 0, "{:?}", engine.stats());
    for (told, expected) in all.iter().zip(&expected) {
        assert_eq!(told.text(), *expected);
    }
}

#[test]
fn a_prompt_that_begins_as_an_earlier_one_reuses_its_cache() {
    let mut engine = engine(2, 4, None);
    let (_, first) = submit(&mut engine, PROMPTS[2], 8);
    drain(&mut engine);
    let longer = format!("{}{} and", PROMPTS[2], first.text());
    let (_, second) = submit(&mut engine, &longer, 8);
    drain(&mut engine);
    let end = second.end();
    assert!(end.timings.reused_tokens > 16, "{end:?}");
    assert_eq!(second.text(), alone(&longer, 8));
    assert_eq!(engine.stats().prefix_tokens, end.timings.reused_tokens as u64);
}

#[test]
fn what_can_never_fit_is_refused_with_numbers_and_a_full_queue_says_when() {
    let mut engine = engine(1, 2, Some(1 << 20));
    let (long, _) = request(&engine, &"word ".repeat(400), 5);
    let refused = engine.submit(long).unwrap_err();
    assert!(refused.to_string().contains("256"), "{refused}");
    let (mut foreign, _) = request(&engine, "The", 5);
    foreign.prompt.push(u32::MAX);
    assert!(engine.submit(foreign).unwrap_err().to_string().contains("4294967295"));
    for waiting in 0..3 {
        assert_eq!(submit(&mut engine, "The", 4).0.ahead, waiting);
    }
    let (fourth, _) = request(&engine, "The", 4);
    assert!(matches!(engine.submit(fourth).unwrap_err(), Refused::Full { waiting: 3, .. }));
    assert_eq!(engine.stats().refused, 3);
    drain(&mut engine);
}

#[test]
fn who_goes_away_or_is_cancelled_frees_the_slot_within_a_step() {
    let mut engine = engine(1, 4, None);
    let (mut impatient, told) = request(&engine, "The", 200);
    impatient.sink = Box::new(Listener { told: told.clone(), patience: 3 });
    engine.submit(impatient).unwrap();
    let (waiting, unheard) = submit(&mut engine, "The", 4);
    let (_, third) = submit(&mut engine, PROMPTS[3], 4);
    engine.cancel(waiting.id);
    drain(&mut engine);
    assert_eq!((told.end().reason, told.end().tokens), (StopReason::Cancelled, 3));
    assert_eq!((unheard.end().reason, unheard.text()), (StopReason::Cancelled, String::new()));
    assert_eq!(third.text(), alone(PROMPTS[3], 4));
    engine.cancel(99);
}

#[test]
fn probabilities_are_those_of_the_logits_and_the_chosen_token_of_a_greedy_text_is_the_first() {
    let mut engine = engine(1, 1, None);
    let (mut asked, told) = request(&engine, "The", 5);
    asked.logprobs = Some(3);
    engine.submit(asked).unwrap();
    drain(&mut engine);
    let choices = told.0.lock().unwrap().choices.clone();
    assert_eq!(choices.len(), 5);
    for choice in choices {
        assert_eq!((choice.top[0].0, Some(choice.top[0].1)), (choice.id, choice.logprob));
        assert!(choice.top.len() == 3 && choice.top.windows(2).all(|w| w[0].1 >= w[1].1));
        assert!(choice.top.iter().map(|(_, p)| p.exp()).sum::<f32>() <= 1.0001);
    }
}

#[test]
fn sampled_texts_depend_on_their_seed_alone() {
    let sampled = |sequences: usize| {
        let mut engine = engine(sequences, 8, None);
        let told: Vec<Told> = (0..4)
            .map(|seed| {
                let (mut request, told) = request(&engine, "And", 12);
                request.options.sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
                engine.submit(request).unwrap();
                told
            })
            .collect();
        drain(&mut engine);
        told.iter().map(Told::text).collect::<Vec<_>>()
    };
    let texts = sampled(1);
    assert_eq!(texts, sampled(4));
    assert_ne!(texts[0], texts[1]);
}

/// About 700 tokens, the last few of them as `end` says.
fn long(end: &str) -> String {
    let verse = "And God said, Let there be light: and there was light. And God saw the light, that it was good. ";
    format!("{}{end}", verse.repeat(30))
}

fn keeping(dir: &std::path::Path, sequences: usize, limit: u64) -> Engine {
    let mut engine = engine_of(1200, sequences, 16, None);
    let options = PrefixOptions { dir: dir.to_owned(), limit, model: "demo".into() };
    engine.keep_prefixes(&options).unwrap();
    engine
}

fn ask(engine: &mut Engine, prompt: &str) -> (String, Finished) {
    let (_, told) = submit(engine, prompt, 8);
    drain(engine);
    (told.text(), told.end())
}

#[test]
fn a_beginning_on_disk_is_used_after_a_restart_with_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let want = ask(&mut engine_of(1200, 1, 1, None), &long("And the king")).0;
    let mut first = keeping(dir.path(), 1, 1 << 30);
    assert_eq!(ask(&mut first, &long("The end")).1.timings.reused_tokens, 0);
    drop(first);
    let mut again = keeping(dir.path(), 1, 1 << 30);
    let (text, end) = ask(&mut again, &long("And the king"));
    let stats = again.stats();
    assert_eq!((text, end.timings.reused_tokens), (want.clone(), 2 * BLOCK), "{stats:?}");
    assert_eq!((stats.disk_hits, stats.disk_tokens), (1, 2 * BLOCK as u64));
    assert!(stats.tokens_in < BLOCK as u64 && stats.prefixes.unwrap().read > 0);
    drop(again);
    // One damaged block: what comes before it is used, the rest is computed.
    let damage = |path: PathBuf| {
        let mut bytes = std::fs::read(&path).unwrap();
        if bytes.get(48) == Some(&1) {
            bytes[200] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    };
    std::fs::read_dir(dir.path()).unwrap().for_each(|entry| damage(entry.unwrap().path()));
    let mut damaged = keeping(dir.path(), 1, 1 << 30);
    let (text, end) = ask(&mut damaged, &long("And the king"));
    assert_eq!((text, end.timings.reused_tokens), (want, BLOCK));
    assert_eq!(damaged.stats().prefixes.unwrap().damaged, 1);
}

#[test]
fn of_a_prompt_that_ends_with_a_block_one_token_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let answer = |engine: &mut Engine| {
        let (mut request, told) = request(engine, &long("The end"), 8);
        request.prompt.truncate(2 * BLOCK);
        engine.submit(request).unwrap();
        drain(engine);
        (told.text(), told.end().timings.reused_tokens)
    };
    let want = answer(&mut keeping(dir.path(), 1, 1 << 30)).0;
    assert_eq!(answer(&mut keeping(dir.path(), 1, 1 << 30)), (want, 2 * BLOCK - 1));
}

#[test]
fn the_disk_serves_those_who_come_while_others_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let prompts: Vec<String> = ["One", "Two", "And it came to pass"].map(long).to_vec();
    let expected: Vec<String> = prompts.iter().map(|p| ask(&mut engine_of(1200, 1, 1, None), p).0).collect();
    drop(ask(&mut keeping(dir.path(), 1, 1 << 30), &prompts[0]));
    let mut engine = keeping(dir.path(), 3, 1 << 30);
    let (_, busy) = submit(&mut engine, "The", 60);
    let mut told = Vec::new();
    for prompt in &prompts {
        engine.step().unwrap();
        told.push(submit(&mut engine, prompt, 8).1);
    }
    drain(&mut engine);
    assert_eq!(told.iter().map(Told::text).collect::<Vec<_>>(), expected);
    assert_eq!(busy.text(), alone("The", 60));
    let stats = engine.stats();
    assert_eq!(stats.disk_hits + stats.shared_hits + stats.prefix_hits, 3, "{stats:?}");
}

#[test]
fn requests_of_the_same_beginning_read_it_once() {
    let prompts: Vec<String> = ["One", "Two", "Three", "Four"].map(long).to_vec();
    let expected: Vec<String> = prompts.iter().map(|p| ask(&mut engine_of(1200, 1, 1, None), p).0).collect();
    let mut engine = engine_of(1200, 4, 16, None);
    let told: Vec<Told> = prompts.iter().map(|p| submit(&mut engine, p, 8).1).collect();
    drain(&mut engine);
    assert_eq!(told.iter().map(Told::text).collect::<Vec<_>>(), expected);
    let stats = engine.stats();
    assert_eq!((stats.shared_hits, stats.shared_tokens), (3, 3 * 2 * BLOCK as u64), "{stats:?}");
    assert!(told.iter().skip(1).all(|t| t.end().timings.reused_tokens == 2 * BLOCK));
}
