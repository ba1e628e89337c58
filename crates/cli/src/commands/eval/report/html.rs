//! HTML: escaping, tables, the page around the charts. A page loads nothing and runs nothing.

use std::fmt::Write as _;

/// A text as it may stand between tags and inside quoted attributes. Everything that is not written in this program goes
/// through here: paths, names of files, text from packs.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control and direction characters could make a name look like another one.
            c if c.is_control()
                || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// Scripts, frames, images, fonts and connections are forbidden to the page, whatever it should hold.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const STYLE: &str = include_str!("style.css");

/// A whole page. `title` is escaped here, `body` is HTML.
#[must_use]
pub fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title)
    )
}

/// A section with a heading and a sentence that explains it; `body` is HTML.
#[must_use]
pub fn section(heading: &str, about: &str, body: &str) -> String {
    format!("<section>\n<h2>{}</h2>\n<p class=\"about\">{}</p>\n{body}</section>\n", escape(heading), escape(about))
}

/// A chart that keeps its size and scrolls where the screen is narrower.
#[must_use]
pub fn figure(caption: &str, svg: &str) -> String {
    format!("<figure>\n<figcaption>{}</figcaption>\n<div class=\"scroll\">{svg}</div>\n</figure>\n", escape(caption))
}

/// A cell of a [`table`].
#[derive(Clone, Debug)]
pub enum Cell {
    /// Text, to the left.
    Text(String),
    /// A figure, to the right.
    Number(String),
    /// A word with a background: its kind is a class of the style sheet.
    Badge(&'static str, String),
}

/// A table; all cells are escaped.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut out = "<div class=\"scroll\"><table>\n<thead><tr>".to_owned();
    for h in head {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(h));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = match cell {
                Cell::Text(t) => write!(out, "<td>{}</td>", escape(t)),
                Cell::Number(t) => write!(out, "<td class=\"n\">{}</td>", escape(t)),
                Cell::Badge(kind, t) => write!(out, "<td><span class=\"badge {kind}\">{}</span></td>", escape(t)),
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "<script>alert('1')</script>\" onload=\"x&y\u{202e}\n";

    #[test]
    fn nothing_in_a_text_can_end_an_element_or_an_attribute() {
        let safe = escape(HOSTILE);
        assert!(!safe.contains(['<', '>', '"', '\'', '\n', '\u{202e}']), "{safe}");
        assert_eq!(escape("a<b & \"c\""), "a&lt;b &amp; &quot;c&quot;");
        assert_eq!(escape("Qwen3-30B größer 模型"), "Qwen3-30B größer 模型");
    }

    #[test]
    fn pages_and_tables_escape_what_they_are_given() {
        let rows =
            [vec![Cell::Text(HOSTILE.into()), Cell::Number(HOSTILE.into()), Cell::Badge("good", HOSTILE.into())]];
        let body = section(HOSTILE, HOSTILE, &table(&[HOSTILE], &rows)) + &figure(HOSTILE, "");
        let page = page(HOSTILE, &body);
        assert!(!page.contains("<script") && !page.contains("onload=\""), "{page}");
        assert_eq!(page.matches("&lt;script&gt;").count(), 8);
    }
}
