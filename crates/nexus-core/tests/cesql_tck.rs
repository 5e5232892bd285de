//! Every case of the specification's conformance kit (`cesql_tck/README.md`), by the expression and by the filter.

use std::path::Path;

use nexus_core::cesql::{Error, Expression, Value};
use nexus_core::event::Event;
use nexus_core::filter::Filter;
use serde::Deserialize;
use serde_json::{Map, json};

/// The number of cases: a file that is not found, or read by half, is noticed.
const CASES: usize = 275;

/// A case that says otherwise than the specification: its file and name, and the result that is right.
///
/// `NOT 10` is expected to be a cast error, as it was before 1.0. Section 3.7 says now that integers MUST be cast to
/// booleans, and that 10 is `true`; the kit's other cases were changed with it (`BOOL(100)`, `-TRUE`, `5 + TRUE`).
const AGAINST_THE_TEXT: [(&str, &str, bool); 1] = [("not_operator.yaml", "Invalid int cast", false)];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    #[serde(rename = "name")]
    _name: String,
    tests: Vec<Case>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Case {
    name: String,
    expression: String,
    result: Option<serde_json::Value>,
    error: Option<String>,
    event: Option<Map<String, serde_json::Value>>,
    event_overrides: Option<Map<String, serde_json::Value>>,
}

impl Case {
    /// The event of the case, or one with the required attributes and what the case says of others.
    fn event(&self) -> Event {
        let required = json!({"specversion": "1.0", "id": "an-id", "source": "/a/source", "type": "a.type"});
        let mut event = self.event.clone().or_else(|| required.as_object().cloned()).expect("an object");
        event.extend(self.event_overrides.clone().unwrap_or_default());
        Event::from_json(&serde_json::to_vec(&event).expect("JSON")).expect(&self.name)
    }

    /// What is other than expected.
    fn run(&self) -> Result<(), String> {
        let event = self.event();
        let (value, error) = match Expression::parse(&self.expression) {
            // The kit gives a result beside some errors of parsing, although there is nothing to evaluate.
            Err(_) => (None, Some("parse")),
            Ok(expression) => {
                let evaluation = expression.evaluate(&event);
                (Some(json(evaluation.value)), evaluation.error.as_ref().map(kind))
            }
        };
        if error != self.error.as_deref() {
            return Err(format!("the error is {error:?}, not {:?}", self.error));
        }
        if error != Some("parse") && self.result.is_some() && value != self.result {
            return Err(format!("the value is {value:?}, not {:?}", self.result));
        }
        let matches = Filter::parse(&json!({"sql": self.expression})).is_ok_and(|f| f.matches(&event));
        let expected = self.error.is_none() && self.result == Some(true.into());
        if matches != expected {
            return Err(format!("the filter matches: {matches}"));
        }
        Ok(())
    }
}

fn json(value: Value<'_>) -> serde_json::Value {
    match value {
        Value::String(text) => text.into(),
        Value::Integer(number) => number.into(),
        Value::Boolean(truth) => truth.into(),
    }
}

/// The kit's name of an error.
fn kind(error: &Error) -> &'static str {
    match error {
        Error::Math(_) => "math",
        Error::Cast { .. } => "cast",
        Error::MissingAttribute(_) => "missingAttribute",
        Error::MissingFunction { .. } => "missingFunction",
        Error::FunctionEvaluation { .. } => "functionEvaluation",
        Error::Generic(_) => "generic",
    }
}

/// Every case with the name of its file.
fn cases() -> Vec<(String, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cesql_tck");
    let mut cases = Vec::new();
    for entry in folder.read_dir().expect("the kit") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let file = path.file_name().expect("a name").to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path).expect(&file);
            let suite: Suite = serde_saphyr::from_str(&text).expect(&file);
            cases.extend(suite.tests.into_iter().map(|case| (file.clone(), case)));
        }
    }
    cases
}

#[test]
fn every_case() {
    let cases = cases();
    assert_eq!(cases.len(), CASES);
    let mut against = 0;
    let failures: Vec<String> = cases
        .into_iter()
        .filter_map(|(file, mut case)| {
            if let Some((.., right)) = AGAINST_THE_TEXT.iter().find(|(f, n, _)| *f == file && *n == case.name) {
                against += 1;
                assert!(case.run().is_err(), "{file}: {}: agrees with the specification now", case.name);
                (case.result, case.error) = (Some((*right).into()), None);
            }
            let why = case.run().err()?;
            Some(format!("{file}: {}: {}: {why}", case.name, case.expression))
        })
        .collect();
    assert_eq!(against, AGAINST_THE_TEXT.len());
    assert!(failures.is_empty(), "{} of {CASES} fail:\n{}", failures.len(), failures.join("\n"));
}
