//! A configuration file's man page, from the file that is shipped: its comments are the only description of its keys.
//!
//! How the file is read: `# words` describe what follows; `#key = default` is a key, `[section]` or `#[section]` a
//! section. Keys that follow each other share the words before them.

/// The man page (section 5) of the file whose shipped text is `file`.
#[must_use]
pub fn page(name: &str, purpose: &str, file: &str) -> String {
    let mut page = format!(
        ".TH {} 5 \"\" \"\" LSM\n.SH NAME\n{} \\- {}\n.SH DESCRIPTION\n",
        name.to_uppercase(),
        escaped(name),
        escaped(purpose)
    );
    let mut words: Vec<&str> = Vec::new();
    let mut keys: Vec<&str> = Vec::new();
    let mut described: Vec<&str> = Vec::new();
    for line in file.lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        let is_words = line.starts_with("# ");
        let is_key = !is_words && bare.contains(" = ");
        if !is_key {
            say_keys(&mut page, &mut keys, &mut described);
        }
        if is_words {
            words.push(bare.trim());
        } else if is_key {
            if keys.is_empty() {
                described = std::mem::take(&mut words);
            }
            keys.push(bare);
        } else if bare.starts_with('[') {
            page.push_str(&format!(".SH \"{}\"\n", escaped(bare)));
            say(&mut page, &mut words);
        } else if bare.is_empty() && page.ends_with("DESCRIPTION\n") {
            say(&mut page, &mut words);
        }
    }
    say_keys(&mut page, &mut keys, &mut described);
    page
}

fn say_keys(page: &mut String, keys: &mut Vec<&str>, words: &mut Vec<&str>) {
    for (index, key) in keys.drain(..).enumerate() {
        page.push_str(if index == 0 { ".TP\n" } else { ".TQ\n" });
        page.push_str(&format!("\\fB{}\\fR\n", escaped(key)));
    }
    say(page, words);
}

fn say(page: &mut String, words: &mut Vec<&str>) {
    for line in words.drain(..) {
        page.push_str(&escaped(line));
        page.push('\n');
    }
}

/// As roff reads it as plain text.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    // A line that begins like this would be a request.
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_stands_under_its_section_with_its_words() {
        let file = "# /etc/x: what is told.\n# Two lines.\n\n# A key of all.\n#name = \"a-b\"\n\n[one]\n# Words of two\n# lines.\n#first = 1\n#second = \"\\\\\"\n# 'Quoted.\n#third = 3\n\n# For each.\n#[two.x]\n# More.\n#fourth = 4\n";
        let expected = ".TH X.TOML 5 \"\" \"\" LSM\n.SH NAME\nx.toml \\- a test\n.SH DESCRIPTION\n/etc/x: what is told.\nTwo lines.\n.TP\n\\fBname = \"a\\-b\"\\fR\nA key of all.\n.SH \"[one]\"\n.TP\n\\fBfirst = 1\\fR\n.TQ\n\\fBsecond = \"\\e\\e\"\\fR\nWords of two\nlines.\n.TP\n\\fBthird = 3\\fR\n\\&'Quoted.\n.SH \"[two.x]\"\nFor each.\n.TP\n\\fBfourth = 4\\fR\nMore.\n";
        assert_eq!(page("x.toml", "a test", file), expected);
    }

    #[test]
    fn no_key_of_the_shipped_files_is_left_out() {
        for file in [include_str!("../../guest.toml"), include_str!("../../host.toml")] {
            let page = page("x", "x", file);
            let keys = file.lines().filter_map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ')));
            let keys: Vec<&str> = keys.filter(|key| key.contains(" = ")).collect();
            assert!(keys.len() > 3);
            for key in keys {
                assert!(page.contains(&format!("\n\\fB{}\\fR\n", escaped(key))), "{key}: {page}");
            }
            for line in file.lines().filter_map(|line| line.strip_prefix("# ")) {
                assert!(page.contains(&escaped(line.trim())), "{line}: {page}");
            }
        }
    }
}
