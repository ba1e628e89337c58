//! Replies in pieces of every size.

use super::*;

fn tags(begins_inside: bool) -> ReplyForm {
    ReplyForm::Tags { begins_inside, open: "<think>".into(), close: "</think>".into(), calls: None }
}

/// The parts of a reply, the same however it is cut.
fn split(form: &ReplyForm, text: &str) -> Vec<(Part, String)> {
    let run = |step: usize| {
        let mut splitter = Splitter::new(form);
        let mut parts: Vec<(Part, String)> = Vec::new();
        let mut add = |part, text: &str| match parts.last_mut() {
            Some((last, all)) if *last == part => all.push_str(text),
            _ => parts.push((part, text.to_owned())),
        };
        let chars: Vec<char> = text.chars().collect();
        for piece in chars.chunks(step) {
            splitter.push(&piece.iter().collect::<String>(), &mut add);
        }
        splitter.finish(&mut add);
        parts
    };
    let whole = run(usize::MAX);
    for step in [1, 2, 3, 7, 11] {
        assert_eq!(run(step), whole, "in pieces of {step}: {text}");
    }
    whole
}

fn parts(list: &[(Part, &str)]) -> Vec<(Part, String)> {
    list.iter().map(|(part, text)| (*part, (*text).to_owned())).collect()
}

use Part::{Answer, Call, Reasoning};

#[test]
fn reasoning_stands_between_tags() {
    let want = parts(&[(Reasoning, "Let me see.\n"), (Answer, "Blue.\n")]);
    assert_eq!(split(&tags(false), "\n<think>\nLet me see.\n</think>\n\nBlue.\n"), want);
    assert_eq!(split(&tags(true), "\nLet me see.\n</think>\n\nBlue.\n"), want);
    assert_eq!(split(&tags(false), "<think>\n\n</think>\n\nBlue."), parts(&[(Answer, "Blue.")]));
}

#[test]
fn a_tag_later_on_is_text() {
    assert_eq!(split(&tags(false), "Use <think> and </think>."), parts(&[(Answer, "Use <think> and </think>.")]));
    let want = parts(&[(Reasoning, "a <think> b"), (Answer, "</think>")]);
    assert_eq!(split(&tags(true), "a <think> b</think></think>"), want);
}

#[test]
fn a_reply_that_ends_early_loses_nothing() {
    assert_eq!(split(&tags(true), "so far </thi"), parts(&[(Reasoning, "so far </thi")]));
    assert_eq!(split(&tags(false), "<thi"), parts(&[(Answer, "<thi")]));
    assert_eq!(split(&tags(false), ""), []);
    assert_eq!(split(&ReplyForm::Plain, "<think>a</think>b"), parts(&[(Answer, "<think>a</think>b")]));
}

#[test]
fn what_may_be_a_tag_is_held_back_and_no_more() {
    let mut splitter = Splitter::new(&tags(true));
    let said = std::cell::RefCell::new(String::new());
    let mut add = |_, text: &str| said.borrow_mut().push_str(text);
    for (piece, want) in [
        ("one <", "one "),
        ("/", "one "),
        ("b", "one </b"),
        ("</think", "one </b"),
        (">", "one </b"),
        ("\n2", "one </b2"),
    ] {
        splitter.push(piece, &mut add);
        assert_eq!(*said.borrow(), want);
    }
}

#[test]
fn channels_are_told_apart() {
    let text = "<|channel|>analysis<|message|>Simple.<|end|><|start|>assistant<|channel|>final<|message|>4";
    assert_eq!(split(&ReplyForm::Channels, text), parts(&[(Reasoning, "Simple."), (Answer, "4")]));
    let twice = "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>analysis<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>";
    assert_eq!(split(&ReplyForm::Channels, twice), parts(&[(Reasoning, "One.\n\nTwo."), (Answer, "4")]));
}

#[test]
fn what_is_said_before_a_call_is_an_answer_and_the_call_is_none() {
    let text = "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant<|channel|>commentary to=functions.find <|constrain|>json<|message|>{\"q\": 1}<|call|>";
    assert_eq!(
        split(&ReplyForm::Channels, text),
        parts(&[(Answer, "I look it up."), (Call, "functions.find {\"q\": 1}\n")])
    );
    let before = "<|start|>assistant to=functions.find<|channel|>commentary json<|message|>{}";
    assert_eq!(split(&ReplyForm::Channels, before), parts(&[(Call, "functions.find {}")]));
}

#[test]
fn a_reply_without_channels_is_an_answer() {
    assert_eq!(split(&ReplyForm::Channels, "Just text."), parts(&[(Answer, "Just text.")]));
    assert_eq!(split(&ReplyForm::Channels, "<|channel|>"), []);
}
