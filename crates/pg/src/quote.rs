//! SQL text from names and values, the only place that builds it.

/// A quoted identifier: `"na""me"`. A NUL byte, which no identifier can hold, stays and is refused when sent.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted name with its schema: `"schema"."name"`.
pub fn qualified(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// A string literal that means the same with `standard_conforming_strings` on and off.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        // A leading blank keeps the E from growing together with a word before it, as in `quote_literal`.
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A template with its `{places}` filled, in one pass: what is put in is never taken for a place. A place for which
/// there is nothing stays.
pub fn fill(template: &str, parts: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find('{') {
        let (before, after) = rest.split_at(start);
        filled.push_str(before);
        let part = parts.iter().find_map(|(name, text)| {
            let end = after.strip_prefix('{')?.strip_prefix(*name)?.strip_prefix('}')?;
            Some((*text, end))
        });
        let (text, end) = part.unwrap_or(after.split_at(1));
        filled.push_str(text);
        rest = end;
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_no_place() {
        let parts = [("a", "{b}"), ("b", "{a}")];
        assert_eq!(fill("{a}, {b}, '{c}' {", &parts), "{b}, {a}, '{c}' {");
    }

    #[test]
    fn quotes() {
        assert_eq!(ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(qualified("S", "t"), "\"S\".\"t\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("a\\'"), " E'a\\\\'''");
    }
}
