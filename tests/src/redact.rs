//! What differs from run to run, taken out of a text: what is left can be compared with a snapshot.

/// Times, durations, ids, digests and addresses become names; runs of white space within a line, whose length depends on
/// them, become two spaces. Different ids stay different.
pub fn redact(text: &str) -> String {
    let mut ids: Vec<String> = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start_matches(' ').len();
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut out = " ".repeat(indent);
        let mut at = 0;
        while at < words.len() {
            if at > 0 {
                // Columns are two spaces apart or more, words one.
                out.push_str(if is_column(line, words[at - 1], words[at]) { "  " } else { " " });
            }
            if at + 1 < words.len() && is_duration(words[at], words[at + 1]) {
                out.push_str("[duration]");
                at += 2;
                continue;
            }
            out.push_str(&word(words[at], &mut ids));
            at += 1;
        }
        lines.push(out);
    }
    lines.join("\n")
}

fn is_column(line: &str, before: &str, after: &str) -> bool {
    !line.contains(&format!("{before} {after}"))
}

fn is_duration(number: &str, unit: &str) -> bool {
    let unit = unit.trim_end_matches([',', ';', ')']);
    number.parse::<f64>().is_ok() && ["ns", "µs", "ms", "s"].contains(&unit)
}

/// One word: its parts between punctuation are looked at one by one.
fn word(word: &str, ids: &mut Vec<String>) -> String {
    if word.contains('█') {
        return "[bar]".into();
    }
    let mut out = String::new();
    let mut rest = word;
    while !rest.is_empty() {
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | ':' | '.' | '+');
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        if end == 0 {
            let next = rest.chars().next().map_or(0, char::len_utf8);
            out.push_str(&rest[..next]);
            rest = &rest[next..];
            continue;
        }
        out.push_str(&name(&rest[..end], ids));
        rest = &rest[end..];
    }
    out
}

fn name(part: &str, ids: &mut Vec<String>) -> String {
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let time = part.len() >= 20
        && part.ends_with('Z')
        && part.as_bytes()[10] == b'T'
        && part[..4].bytes().all(|b| b.is_ascii_digit());
    if time {
        return "[time]".into();
    }
    if let Some(digest) = part.strip_prefix("sha256:")
        && hex(digest)
    {
        return "sha256:[digest]".into();
    }
    if let Some(port) = part.strip_prefix("127.0.0.1:")
        && port.parse::<u16>().is_ok()
    {
        return "[address]".into();
    }
    // An id that was made from another by adding to it.
    if let Some((id, more)) = part.split_once('-')
        && id.len() == 32
        && hex(id)
    {
        return format!("{}-{more}", name(id, ids));
    }
    let uuid = part.len() == 36 && part.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && hex(&part.replace('-', ""));
    if uuid || part.len() == 32 && hex(part) {
        let at = ids.iter().position(|id| id == part).unwrap_or_else(|| {
            ids.push(part.to_owned());
            ids.len() - 1
        });
        return format!("[{} {}]", if uuid { "uuid" } else { "id" }, at + 1);
    }
    part.to_owned()
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn what_differs_is_named() {
        let check = |text: &str, expected: &str| assert_eq!(redact(text), expected, "{text}");
        check("a  b c     d", "a  b c  d");
        check("  took  1.25 ms, then 7 ns", "  took  [duration] then [duration]");
        check("at 2026-01-31T12:00:00.5Z", "at [time]");
        check("{\"x\":\"127.0.0.1:80\"}", "{\"x\":\"[address]\"}");
        let (one, two) = ("0af7651916cd43dd8448eb211c80319c", "4bf92f3577b34da6a3ce929d0e0e4736");
        check(&format!("{one} {two} {one}"), "[id 1] [id 2] [id 1]");
        check("x 01a210de-458f-7271-ae45-50c4dc7121e9", "x [uuid 1]");
        check(&format!("{one} {two}-sent"), "[id 1] [id 2]-sent");
        check("order-check 1.0", "order-check 1.0");
    }
}
