//! The word that was meant: of those there are, the one that looks most like what is written.

/// `did you mean `…`?`, or a list of what there is.
pub fn did_you_mean(word: &str, known: &[&str]) -> String {
    match closest(word, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there are: {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// The known word that looks most like `word`, if it looks enough like it, and more so than any other: a guess among several
/// that are as likely would name somebody who was not meant. One that is written without its end is the likeliest. Of those that
/// have the same letters at other places it is the one that takes the fewest changes.
pub fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let likeness = |name: &str| if name.starts_with(word) { 1.0 } else { strsim::jaro_winkler(word, name) };
    let changes = |name: &str| if name.starts_with(word) { 0 } else { strsim::levenshtein(word, name) };
    let compare = |a: &str, b: &str| likeness(a).total_cmp(&likeness(b)).then(changes(b).cmp(&changes(a)));
    let best = known.iter().copied().max_by(|a, b| compare(a, b))?;
    let has_rival = known.iter().any(|name| *name != best && compare(name, best).is_eq());
    (likeness(best) > 0.8 && !has_rival).then_some(best)
}
