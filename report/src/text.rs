//! Text from the audit as HTML.

use std::fmt::Write;

/// Characters of a word after which a line may break.
const WORD: usize = 14;

/// A text for an element's content. Long ones are cut after so many characters, long words may be broken.
pub fn content(text: &str, limit: usize) -> String {
    let mut html = String::with_capacity(text.len());
    let mut word = 0;
    for (at, c) in text.chars().enumerate() {
        if at == limit {
            html.push_str("<span class=\"cut\">&#x2026;</span>");
            break;
        }
        if word == WORD {
            html.push_str("<wbr>");
            word = 0;
        }
        word = if c.is_whitespace() { 0 } else { word + 1 };
        let joint = word > WORD / 2 && matches!(c, '_' | '.' | '-' | '@' | '/');
        if unseen(c) {
            // What could hide or turn text around is shown as what it is.
            let _ = write!(html, "<span class=\"ctl\">U+{:04X}</span><wbr>", u32::from(c));
            word = 0;
        } else {
            put(&mut html, c);
        }
        if joint {
            html.push_str("<wbr>");
            word = 0;
        }
    }
    html
}

/// A text for an attribute in double quotes.
pub fn attribute(text: &str, limit: usize) -> String {
    let mut html = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        if at == limit {
            html.push_str("&#x2026;");
            break;
        }
        if unseen(c) {
            let _ = write!(html, "[U+{:04X}]", u32::from(c));
        } else {
            put(&mut html, c);
        }
    }
    html
}

/// A name: by itself, so that one that is written from right to left does not carry its neighbours along.
pub fn name(name: &str) -> String {
    format!("<bdi class=\"n\">{}</bdi>", content(name, 130))
}

/// ASCII, whatever it was.
fn put(html: &mut String, c: char) {
    match c {
        '&' => html.push_str("&amp;"),
        '<' => html.push_str("&lt;"),
        '>' => html.push_str("&gt;"),
        '"' => html.push_str("&quot;"),
        '\'' => html.push_str("&#x27;"),
        '`' => html.push_str("&#x60;"),
        ' '..='~' => html.push(c),
        _ => {
            let _ = write!(html, "&#x{:X};", u32::from(c));
        }
    }
}

/// Characters that are not there to be read: controls, directions, what has no width, and what is no character.
fn unseen(c: char) -> bool {
    let white = matches!(c, '\n' | '\t' | '\r');
    (c.is_control() && !white)
        || matches!(u32::from(c),
            0xAD | 0x34F | 0x61C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F | 0x200B..=0x200F
            | 0x2028..=0x202E | 0x2060..=0x206F | 0x3164 | 0xFE00..=0xFE0F | 0xFEFF | 0xFFA0 | 0xFFF0..=0xFFFB
            | 0x1BCA0..=0x1BCA3 | 0x1D173..=0x1D17A | 0xE0000..=0xE0FFF)
        || u32::from(c) & 0xFFFE == 0xFFFE
        || (0xFDD0..=0xFDEF).contains(&u32::from(c))
}

/// 12,345
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 row`, `2 rows`
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(count), if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_text() {
        let nasty = "<script>alert('x' + \"y\")</script> & <img src=x onerror=`z`>";
        for html in [content(nasty, 999), attribute(nasty, 999), name(nasty)] {
            assert!(
                !html.contains("<script") && !html.contains("<img") && !html.contains('`'),
                "{html}"
            );
            let html = html.replace("<wbr>", "");
            assert!(
                html.contains("&lt;script&gt;alert(&#x27;x&#x27; + &quot;y&quot;)&lt;/script&gt; &amp;"),
                "{html}"
            );
        }
        assert_eq!(content("&lt;", 9), "&amp;lt;");
    }

    #[test]
    fn what_cannot_be_seen_is_shown() {
        assert_eq!(
            content("a\u{202E}b\0c\u{7f}\u{200B}", 99),
            "a<span class=\"ctl\">U+202E</span><wbr>b<span class=\"ctl\">U+0000</span><wbr>c\
             <span class=\"ctl\">U+007F</span><wbr><span class=\"ctl\">U+200B</span><wbr>"
        );
        assert_eq!(
            attribute("a\u{2067}\u{FEFF}\u{E0041}", 99),
            "a[U+2067][U+FEFF][U+E0041]"
        );
    }

    #[test]
    fn every_character_becomes_ascii_without_markup_of_its_own() {
        for c in ('\0'..=char::MAX).step_by(1) {
            let (inside, quoted) = (content(&c.to_string(), 9), attribute(&c.to_string(), 9));
            assert!(inside.is_ascii() && quoted.is_ascii());
            assert!(!quoted.contains(['<', '>', '"']), "{quoted}");
            let bare = inside.replace("<span class=\"ctl\">", "").replace("</span><wbr>", "");
            assert!(!bare.contains(['<', '>', '"', '\'']), "{inside}");
            assert!(
                !inside
                    .bytes()
                    .chain(quoted.bytes())
                    .any(|b| b < b' ' && !b"\n\t\r".contains(&b))
                    || c < ' '
            );
        }
    }

    #[test]
    fn long_words_may_be_broken_and_short_ones_not() {
        assert_eq!(content("help_anna and others", 99), "help_anna and others");
        assert_eq!(content("helpdesk_anna", 99), "helpdesk_<wbr>anna");
        assert_eq!(content(&"x".repeat(30), 99), "xxxxxxxxxxxxxx<wbr>xxxxxxxxxxxxxx<wbr>xx");
        assert_eq!(content(&"<".repeat(15), 99), format!("{}<wbr>&lt;", "&lt;".repeat(14)));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(
            content("\u{e9}\u{e9}\u{e9}", 2),
            "&#xE9;&#xE9;<span class=\"cut\">&#x2026;</span>"
        );
        assert_eq!(content("ab", 2), "ab");
        assert_eq!(attribute("abc", 2), "ab&#x2026;");
    }

    #[test]
    fn numbers_are_grouped() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (given, expected) in cases {
            assert_eq!(number(given), expected);
        }
        assert_eq!(counted(1, "row", "rows"), "1 row");
        assert_eq!(counted(2, "row", "rows"), "2 rows");
    }
}
