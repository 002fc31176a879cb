//! Reads the TOML text: finds every unknown key and wrong type, not only the first, and lays the environment over it.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::AgentConfig;
use super::problem::{Place, Problems, explain};

/// What the names of all overriding variables begin with.
pub(super) const PREFIX: &str = "SYNAPSEDB_";

/// How many problems are looked for at most.
const PROBLEMS_MAX: usize = 64;

/// A variable of the environment, as if its text stood somewhere behind the end of the file: so a span in the tree
/// tells whether a value came from the file or from which variable.
pub(super) struct Variable {
    name: String,
    path: Vec<String>,
    /// The value as given.
    text: String,
    /// `v=<value>`, behind as many spaces as it takes to begin at `span.start`.
    toml: String,
    span: Range<usize>,
}

impl Variable {
    /// Places all variables behind a file of `length` bytes.
    pub(super) fn place_all(length: usize, environment: &[(String, String)]) -> Vec<Self> {
        let mut from = length + 1;
        let place = |(name, value): &(String, String)| {
            let path = name.strip_prefix(PREFIX)?.split("__").map(str::to_ascii_lowercase);
            let toml = format!("{}v={value}", " ".repeat(from));
            let span = from..toml.len() + 1;
            from = span.end + 1;
            let (name, path, text) = (name.clone(), path.collect(), value.clone());
            Some(Self { name, path, text, toml, span })
        };
        environment.iter().filter_map(place).collect()
    }

    fn value(&self) -> Spanned<DeValue<'_>> {
        let parsed = DeTable::parse(&self.toml).ok();
        let only = parsed.map(Spanned::into_inner).filter(|table| table.len() == 1);
        match only.and_then(|table| table.into_iter().next()) {
            Some((_, value)) => value,
            None => self.text_value(),
        }
    }

    fn text_value<'i>(&self) -> Spanned<DeValue<'i>> {
        Spanned::new(self.span.clone(), DeValue::String(Cow::Owned(self.text.clone())))
    }
}

/// The text as a tree that knows where everything stood.
pub(super) struct Document<'i> {
    text: &'i str,
    root: DeTable<'i>,
    variables: &'i [Variable],
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Reads `text`. `None` when it is no TOML at all; otherwise the configuration with defaults in the place of what was
/// wrong, and the problems are added.
pub(super) fn read<'i>(
    text: &'i str,
    variables: &'i [Variable],
    problems: &mut Problems,
) -> Option<(AgentConfig, Document<'i>)> {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let place = error.span().map_or(Place::File, |span| Place::Line(line(text, span.start)));
        problems.add(place, "", format!("is not TOML: {}", error.message().replace('\n', "; ")));
    }
    if !errors.is_empty() {
        return None;
    }
    let mut document = Document { text, root: root.into_inner(), variables };
    for variable in variables {
        document.overlay(variable, problems);
    }
    // Every round finds one problem and takes its key away, so that the next round finds the next one.
    for _ in 0..PROBLEMS_MAX {
        let root = Spanned::new(0..text.len(), document.root.clone());
        let error = match AgentConfig::deserialize(Deserializer::from(root)) {
            Ok(config) => return Some((config, document)),
            Err(error) => error,
        };
        let Some(span) = error.span() else {
            problems.add(Place::File, "", explain(error.message()));
            return None;
        };
        let Some(path) = find(&document.root, &span) else {
            problems.add(document.place(&span), "", explain(error.message()));
            return None;
        };
        if !document.take_as_text(&path, &span) {
            problems.add(document.place(&span), dotted(&path), explain(error.message()));
            remove(&mut document.root, &path);
        }
    }
    None
}

impl<'i> Document<'i> {
    /// Where the value of a key like `node.id` or `member.0.peers` stood, if it is there.
    pub(super) fn place_of(&self, path: &str) -> Option<Place> {
        let mut steps = path.split('.');
        let mut value = entry(&self.root, steps.next()?)?;
        for step in steps {
            value = match value.get_ref() {
                DeValue::Table(table) => entry(table, step)?,
                DeValue::Array(array) => array.get(step.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(self.place(&value.span()))
    }

    fn variable(&self, span: &Range<usize>) -> Option<&'i Variable> {
        self.variables.iter().find(|variable| variable.span.contains(&span.start))
    }

    fn place(&self, span: &Range<usize>) -> Place {
        match self.variable(span) {
            Some(variable) => Place::Variable(variable.name.clone()),
            None => Place::Line(line(self.text, span.start)),
        }
    }

    fn overlay(&mut self, variable: &'i Variable, problems: &mut Problems) {
        let Some((key, sections)) = variable.path.split_last() else { return };
        let spanned = |name: &String| Spanned::new(variable.span.clone(), Cow::Owned(name.clone()));
        let mut table = &mut self.root;
        for section in sections {
            let empty = || Spanned::new(variable.span.clone(), DeValue::Table(DeTable::new()));
            match table.entry(spanned(section)).or_insert_with(empty).get_mut() {
                DeValue::Table(inner) => table = inner,
                _ => {
                    let text = "is no section, so that no key of it can be set; edit the file";
                    problems.add(Place::Variable(variable.name.clone()), section.clone(), text);
                    return;
                }
            }
        }
        table.insert(spanned(key), variable.value());
    }

    /// A variable's value may look like a number where a text is wanted: then it is taken as text. Tells whether
    /// that changed anything.
    fn take_as_text(&mut self, path: &[Step], span: &Range<usize>) -> bool {
        let Some(variable) = self.variable(span) else { return false };
        let Some(value) = at(&mut self.root, path) else { return false };
        if value.get_ref().is_str() || value.get_ref().is_table() {
            return false;
        }
        *value = variable.text_value();
        true
    }
}

fn entry<'t, 'i>(table: &'t DeTable<'i>, name: &str) -> Option<&'t Spanned<DeValue<'i>>> {
    table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value)
}

fn at<'t, 'i>(table: &'t mut DeTable<'i>, path: &[Step]) -> Option<&'t mut Spanned<DeValue<'i>>> {
    let (Step::Key(first), rest) = path.split_first()? else { return None };
    let (_, mut value) = table.iter_mut().find(|(key, _)| key.get_ref() == first.as_str())?;
    for step in rest {
        value = match (value.get_mut(), step) {
            (DeValue::Table(table), Step::Key(name)) => {
                table.iter_mut().find(|(key, _)| key.get_ref() == name.as_str())?.1
            }
            (DeValue::Array(array), Step::Index(index)) => array.get_mut(*index)?,
            _ => return None,
        };
    }
    Some(value)
}

fn remove(root: &mut DeTable<'_>, path: &[Step]) {
    let Some((last, parents)) = path.split_last() else { return };
    let table = match at(root, parents).map(Spanned::get_mut) {
        Some(DeValue::Table(table)) => table,
        Some(DeValue::Array(array)) => {
            // Taking one element away would renumber the others: the list loses its meaning as a whole.
            *array = toml::de::DeArray::new();
            return;
        }
        Some(_) => return,
        None => root,
    };
    if let Step::Key(name) = last {
        table.remove(name.as_str());
    }
}

/// The path of the deepest key or value that stands at `span`.
fn find(root: &DeTable<'_>, span: &Range<usize>) -> Option<Vec<Step>> {
    for (key, value) in root.iter() {
        let mut path = vec![Step::Key(key.get_ref().to_string())];
        if key.span() == *span {
            return Some(path);
        }
        if let Some(rest) = find_in(value, span) {
            path.extend(rest);
            return Some(path);
        }
    }
    None
}

fn find_in(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> Option<Vec<Step>> {
    let inner = match value.get_ref() {
        DeValue::Table(table) => find(table, span),
        DeValue::Array(array) => array.iter().enumerate().find_map(|(index, element)| {
            let rest = find_in(element, span)?;
            Some([vec![Step::Index(index)], rest].concat())
        }),
        _ => None,
    };
    inner.or_else(|| (value.span() == *span).then(Vec::new))
}

fn line(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn dotted(path: &[Step]) -> String {
    let words: Vec<String> = path
        .iter()
        .map(|step| match step {
            Step::Key(key) => key.clone(),
            Step::Index(index) => index.to_string(),
        })
        .collect();
    words.join(".")
}
