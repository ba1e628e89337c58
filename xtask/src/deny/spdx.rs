//! SPDX licence expressions: `A OR B`, `A AND B`, parentheses, `A WITH exception`, and the old `A/B`.

/// Whether `expression` can be satisfied with `allow` alone. `X WITH E` is allowed where `X` is, as exceptions only
/// ever permit more.
pub fn allowed(expression: &str, allow: &[String]) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, at: 0, allow };
    let value = parser.any()?;
    if parser.at == words.len() { Ok(value) } else { Err(format!("cannot read it from `{}` on", words[parser.at])) }
}

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
    allow: &'a [String],
}

impl Parser<'_> {
    fn take(&mut self, word: &str) -> bool {
        let found = self.words.get(self.at) == Some(&word);
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Result<bool, String> {
        let mut value = self.every()?;
        while self.take("OR") {
            value |= self.every()?;
        }
        Ok(value)
    }

    fn every(&mut self) -> Result<bool, String> {
        let mut value = self.one()?;
        while self.take("AND") {
            value &= self.one()?;
        }
        Ok(value)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let value = self.any()?;
            return if self.take(")") { Ok(value) } else { Err("a `)` is missing".into()) };
        }
        let id = *self.words.get(self.at).ok_or("it ends too early")?;
        self.at += 1;
        if self.take("WITH") {
            self.at += 1;
        }
        Ok(self.allow.iter().any(|a| a == id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str) -> Result<bool, String> {
        allowed(expression, &["MIT".to_owned(), "Apache-2.0".to_owned()])
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        assert_eq!(check("GPL-3.0 OR MIT"), Ok(true));
        assert_eq!(check("Unlicense/MIT"), Ok(true));
        assert_eq!(check("GPL-3.0 OR LGPL-2.1"), Ok(false));
    }

    #[test]
    fn every_part_of_a_conjunction_must_be_allowed() {
        assert_eq!(check("(MIT OR Apache-2.0) AND Unicode-3.0"), Ok(false));
        assert_eq!(check("(GPL-3.0 OR Apache-2.0) AND MIT"), Ok(true));
        assert_eq!(check("MIT AND GPL-3.0 OR Apache-2.0"), Ok(true), "AND binds tighter");
    }

    #[test]
    fn an_exception_goes_with_its_licence() {
        assert_eq!(check("Apache-2.0 WITH LLVM-exception"), Ok(true));
        assert_eq!(check("GPL-2.0 WITH Classpath-exception-2.0"), Ok(false));
    }

    #[test]
    fn nonsense_is_an_error() {
        for bad in ["", "(MIT", "MIT MIT", "MIT OR"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
