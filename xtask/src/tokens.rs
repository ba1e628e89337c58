//! Rust source as tokens: enough to tell code from comments, strings from code, and tests from the rest.
//!
//! Not a parser: rules over these tokens are heuristics that catch slips, not adversaries.

/// What a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Identifiers, keywords and numbers.
    Word(String),
    /// The contents of a string literal, escapes left as they are.
    Text(String),
    /// Any other character.
    Punct(char),
}

/// A token and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    /// From 1.
    pub line: usize,
    /// Inside an item under `#[cfg(test)]`.
    pub test: bool,
}

impl Token {
    /// Whether this is the identifier or keyword `word`.
    pub fn is_word(&self, word: &str) -> bool {
        matches!(&self.kind, Kind::Word(w) if w == word)
    }

    /// Whether this is the character `c`.
    pub fn is(&self, c: char) -> bool {
        self.kind == Kind::Punct(c)
    }
}

/// The tokens of a file.
pub fn tokens(source: &str) -> Vec<Token> {
    let mut lexer = Lexer { chars: source.chars().collect(), at: 0, line: 1, out: Vec::new() };
    while lexer.step() {}
    mark_tests(&mut lexer.out);
    lexer.out
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
    out: Vec<Token>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn bump(&mut self) -> char {
        let c = self.peek(0);
        self.at += 1;
        self.line += usize::from(c == '\n');
        c
    }

    fn push(&mut self, kind: Kind, line: usize) {
        self.out.push(Token { kind, line, test: false });
    }

    fn step(&mut self) -> bool {
        if self.at >= self.chars.len() {
            return false;
        }
        let line = self.line;
        match (self.peek(0), self.peek(1)) {
            ('/', '/') => while self.at < self.chars.len() && self.bump() != '\n' {},
            ('/', '*') => self.block_comment(),
            ('"', _) => self.string(line),
            ('\'', _) => self.quote(),
            (c, _) if c.is_alphanumeric() || c == '_' => self.word(line),
            (c, _) => {
                self.bump();
                if !c.is_whitespace() {
                    self.push(Kind::Punct(c), line);
                }
            }
        }
        true
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.chars.len() {
            match (self.peek(0), self.peek(1)) {
                ('/', '*') => depth += 1,
                ('*', '/') => depth -= 1,
                _ => {
                    self.bump();
                    continue;
                }
            }
            self.at += 2;
            if depth == 0 {
                return;
            }
        }
    }

    fn word(&mut self, line: usize) {
        let mut word = String::new();
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            word.push(self.bump());
        }
        if matches!(word.as_str(), "r" | "br" | "cr" | "b" | "c") {
            let hashes = (0..).take_while(|&i| self.peek(i) == '#').count();
            if self.peek(hashes) == '"' && (hashes == 0 || word.contains('r')) {
                self.at += hashes;
                return if word.contains('r') { self.raw_string(hashes, line) } else { self.string(line) };
            }
        }
        self.push(Kind::Word(word), line);
    }

    fn string(&mut self, line: usize) {
        self.bump();
        let mut text = String::new();
        while self.at < self.chars.len() {
            match self.bump() {
                '"' => break,
                '\\' => {
                    text.push('\\');
                    text.push(self.bump());
                }
                c => text.push(c),
            }
        }
        self.push(Kind::Text(text), line);
    }

    fn raw_string(&mut self, hashes: usize, line: usize) {
        self.bump();
        let mut text = String::new();
        while self.at < self.chars.len() {
            let c = self.bump();
            if c == '"' && (0..hashes).all(|i| self.peek(i) == '#') {
                self.at += hashes;
                break;
            }
            text.push(c);
        }
        self.push(Kind::Text(text), line);
    }

    /// A character literal or a lifetime; neither matters to any rule.
    fn quote(&mut self) {
        self.bump();
        if self.peek(0) == '\\' {
            self.at += 2;
            while self.at < self.chars.len() && self.bump() != '\'' {}
        } else if self.peek(1) == '\'' {
            self.at += 2;
        }
    }
}

/// Marks every item that follows a `#[cfg(test)]`, up to its closing brace or semicolon.
fn mark_tests(tokens: &mut [Token]) {
    let mut i = 0;
    while i < tokens.len() {
        let attribute = ["#", "[", "cfg", "(", "test"];
        let here = attribute.iter().enumerate().all(|(j, want)| {
            tokens.get(i + j).is_some_and(|t| match &t.kind {
                Kind::Word(w) => w == want,
                Kind::Punct(c) => want.len() == 1 && want.starts_with(*c),
                Kind::Text(_) => false,
            })
        });
        if !here {
            i += 1;
            continue;
        }
        let mut depth = 0;
        let mut started = false;
        for token in tokens.iter_mut().skip(i) {
            token.test = true;
            i += 1;
            depth += i32::from(token.is('{')) - i32::from(token.is('}'));
            started |= token.is('{');
            if (started && depth == 0) || (!started && token.is(';')) {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        tokens(source)
            .into_iter()
            .filter_map(|t| match t.kind {
                Kind::Word(w) => Some(w),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn comments_and_strings_hold_no_words() {
        let source =
            "a // unsafe\n/* unsafe /* nested */ unsafe */ b \"unsafe\" r#\"un\"safe\"# b\"x\" 'c' 'd: 'a' '\\'' e";
        assert_eq!(words(source), ["a", "b", "d", "e"]);
    }

    #[test]
    fn lines_are_counted_through_strings_and_comments() {
        let all = tokens("\"one\ntwo\" /* \n */ x");
        assert_eq!(all.last().map(|t| t.line), Some(3));
    }

    #[test]
    fn items_under_cfg_test_are_marked() {
        let all = tokens("fn a() {} #[cfg(test)] mod tests { fn b() {} } fn c() {} #[cfg(test)] mod d; fn e() {}");
        let flag = |name: &str| all.iter().find(|t| t.is_word(name)).map(|t| t.test);
        assert_eq!(
            (flag("a"), flag("b"), flag("c"), flag("d"), flag("e")),
            (Some(false), Some(true), Some(false), Some(true), Some(false))
        );
    }
}
