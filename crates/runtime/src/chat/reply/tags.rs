//! Reasoning between two tags.

use super::{Part, before_mark, emit};

#[derive(Clone, Debug)]
pub struct Tags {
    open: String,
    close: String,
    /// What calls begin with, and the same behind the empty line that parts them from an answer.
    calls: Option<[String; 2]>,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing but blanks so far.
    Begin,
    /// The line breaks after a tag, which belong to neither side.
    Gap(Part),
    Inside(Part),
}

impl Tags {
    pub fn new(begins_inside: bool, open: &str, close: &str, calls: Option<&str>) -> Self {
        let place = if begins_inside { Place::Gap(Part::Reasoning) } else { Place::Begin };
        let calls = calls.map(|mark| [mark.to_owned(), format!("\n\n{mark}")]);
        Self { open: open.to_owned(), close: close.to_owned(), calls, place }
    }

    pub fn part(&self) -> Part {
        match self.place {
            Place::Begin => Part::Answer,
            Place::Gap(part) | Place::Inside(part) => part,
        }
    }

    /// Goes on as far as is certain; whether something changed, so that more may be.
    pub fn step(&mut self, held: &mut String, end: bool, out: &mut dyn FnMut(Part, &str)) -> bool {
        match self.place {
            Place::Begin => self.begin(held, end),
            Place::Gap(part) => {
                let rest = held.trim_start_matches('\n').len();
                held.drain(..held.len() - rest);
                if held.is_empty() {
                    return false;
                }
                self.place = Place::Inside(part);
                true
            }
            Place::Inside(part) => {
                let marks: Vec<&str> = match part {
                    Part::Reasoning => vec![&self.close],
                    Part::Answer => self.calls.iter().flatten().map(String::as_str).collect(),
                    Part::Call => Vec::new(),
                };
                let found = before_mark(held, &marks, end, &mut |text| emit(part, text, out));
                match (found, part) {
                    (Some(_), Part::Reasoning) => self.place = Place::Gap(Part::Answer),
                    (Some(mark), _) => {
                        // The mark is part of what will be parsed.
                        emit(Part::Call, mark.trim_start(), out);
                        self.place = Place::Inside(Part::Call);
                    }
                    (None, _) => return false,
                }
                true
            }
        }
    }

    fn begin(&mut self, held: &mut String, end: bool) -> bool {
        let said = held.trim_start();
        if let Some(rest) = said.strip_prefix(self.open.as_str()) {
            *held = rest.to_owned();
            self.place = Place::Gap(Part::Reasoning);
            return true;
        }
        if self.open.starts_with(said) && !end {
            return false;
        }
        self.place = Place::Inside(Part::Answer);
        !held.is_empty()
    }
}
