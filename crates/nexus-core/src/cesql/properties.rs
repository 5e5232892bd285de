//! What is true of every text: tests of parsing and evaluating together.

use proptest::prelude::*;
use proptest::sample::select;

use super::lexer::{Kind, tokens};
use super::tree::{Expr, Operator, Step};
use super::{Attributes, Expression, Value, parser};

/// An expression of the same meaning, with a parenthesis around everything that an operator makes.
pub(super) fn spelled_out(expr: &Expr) -> String {
    let list = |list: &[Expr]| list.iter().map(spelled_out).collect::<Vec<_>>().join(", ");
    match expr {
        Expr::Literal(Value::String(text)) => quoted(text),
        Expr::Literal(value) => value.to_string(),
        Expr::Attribute(name) => name.to_string(),
        Expr::Exists(name) => format!("(EXISTS {name})"),
        Expr::Not(operand) => format!("(NOT {})", spelled_out(operand)),
        Expr::Negate(operand) => format!("(- {})", spelled_out(operand)),
        Expr::Call(call) => format!("{}({})", call.name, list(&call.arguments)),
        Expr::Chain(first, steps) => steps.iter().fold(spelled_out(first), |left, step| match step {
            Step::Binary(operator, right) => format!("({left} {} {})", symbol(*operator), spelled_out(right)),
            Step::Like(pattern) => format!("({left} LIKE {})", quoted(&pattern.to_string())),
            Step::In(set) => format!("({left} IN ({}))", list(set)),
            Step::Not => format!("(NOT {left})"),
        }),
    }
}

fn symbol(operator: Operator) -> &'static str {
    match operator {
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::Remainder => "%",
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Equal => "=",
        Operator::NotEqual => "!=",
        Operator::Less => "<",
        Operator::LessOrEqual => "<=",
        Operator::Greater => ">",
        Operator::GreaterOrEqual => ">=",
        Operator::And => "AND",
        Operator::Or => "OR",
        Operator::Xor => "XOR",
    }
}

/// A literal of this value. Where a `\` stands before a quote, only the other quote can say so.
fn quoted(value: &str) -> String {
    let with = |quote: char| format!("{quote}{}{quote}", value.replace(quote, &format!("\\{quote}")));
    let right = |text: &String| tokens(text).is_ok_and(|t| t[0].kind == Kind::Text(value.to_owned()));
    ['\'', '"'].map(with).into_iter().find(right).expect("one of the two")
}

struct Sample;

impl Attributes for Sample {
    fn get(&self, name: &str) -> Option<Value<'_>> {
        match name {
            "a" => Some("ab%".into()),
            "id" => Some("7".into()),
            "n" => Some(Value::Integer(i32::MIN)),
            "truth" => Some(true.into()),
            _ => None,
        }
    }
}

fn literals() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i32>().prop_map(|n| n.to_string()),
        select(vec!["0", "1", "-1", "TRUE", "false", "''", "\"5\"", "'ab\\%'", "'\\'é\\''", "\"\\\\'\""])
            .prop_map(str::to_owned),
        select(vec!["a", "id", "n", "truth", "none", "EXISTS a", "EXISTS none"]).prop_map(str::to_owned),
    ]
}

/// Texts of which nearly all are expressions.
fn expressions() -> impl Strategy<Value = String> {
    literals().prop_recursive(5, 40, 3, |inner| {
        let operators = "*,/,%,+,-,=,!=,<>,<,<=,>,>=,and,OR,XOR".split(',').collect::<Vec<_>>();
        let unary = select(vec!["LENGTH", "UPPER", "TRIM", "INT", "BOOL", "STRING", "IS_INT", "ABS", "NOT ", "-", ""]);
        let binary = select(vec!["LEFT", "RIGHT", "SUBSTRING", "CONCAT", "CONCAT_WS", "NONE"]);
        let tests = select(vec!["LIKE '%b_'", "NOT LIKE \"a\\%%\"", "IN (1, 'ab%', n)", "NOT IN (truth)"]);
        prop_oneof![
            (inner.clone(), select(operators), inner.clone()).prop_map(|(l, o, r)| format!("{l} {o} {r}")),
            (unary, inner.clone()).prop_map(|(f, x)| format!("{f}({x})")),
            (binary, inner.clone(), inner.clone()).prop_map(|(f, x, y)| format!("{f}({x}, {y})")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(x, y, z)| format!("substring({x},{y},{z})")),
            (inner, tests).prop_map(|(x, t)| format!("{x} {t}")),
        ]
    })
}

/// Tokens in any order.
fn soup() -> impl Strategy<Value = String> {
    let signs = "( ) , + - * / % = != <> < <= > >= ' \" \\ é !";
    let words = "AND or XOR NOT LIKE IN EXISTS TRUE false 1 007 2147483648 a n id f_g 1a 'x' \"%\" LEFT ABS(";
    let token = select(signs.split(' ').chain(words.split(' ')).collect::<Vec<_>>());
    let between = select(vec![" ", "", "\n"]);
    proptest::collection::vec((token, between), 0..40)
        .prop_map(|tokens| tokens.into_iter().flat_map(|(token, between)| [token, between]).collect())
}

/// Parses and evaluates, and asks what must be true whatever the text is.
fn check(text: &str) -> Result<(), TestCaseError> {
    let expression = match Expression::parse(text) {
        Ok(expression) => expression,
        Err(error) => {
            prop_assert!(text.is_char_boundary(error.offset), "{text:?}: {error}");
            return Ok(());
        }
    };
    prop_assert_eq!(expression.to_string(), text);
    let evaluation = expression.evaluate(&Sample);
    prop_assert_eq!(&expression.evaluate(&Sample), &evaluation);

    let tree = parser::parse(text).expect("a second time").root;
    let spelled = spelled_out(&tree);
    let again = parser::parse(&spelled).expect(&spelled).root;
    prop_assert_eq!(&spelled_out(&again), &spelled);
    let again = Expression::parse(&spelled).expect(&spelled);
    prop_assert_eq!(&again.evaluate(&Sample), &evaluation, "{} {}", text, spelled);
    Ok(())
}

proptest! {
    #[test]
    fn any_text(text in any::<String>()) {
        check(&text)?;
    }

    #[test]
    fn any_tokens(text in soup()) {
        check(&text)?;
    }

    #[test]
    fn any_expression(text in expressions()) {
        check(&text)?;
    }
}

#[test]
fn most_generated_texts_are_expressions() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = expressions();
    let parsed = (0..200)
        .filter(|_| Expression::parse(&strategy.new_tree(&mut runner).expect("a text").current()).is_ok())
        .count();
    assert!(parsed > 180, "{parsed} of 200");
}
