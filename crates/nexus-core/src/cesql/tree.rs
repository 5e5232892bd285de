//! A parsed expression.

use super::functions::Function;
use super::like::Pattern;
use super::value::{Type, Value};

/// One expression. It is never deeper than the nesting of its text allows, as operators that follow one another are
/// steps of one chain and not nodes within nodes; so walking it by recursion is safe.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    Literal(Value<'static>),
    Attribute(Box<str>),
    Exists(Box<str>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Call(Box<Call>),
    /// Steps of one precedence, from left to right.
    Chain(Box<Expr>, Vec<Step>),
}

impl Expr {
    /// The type of its value. An attribute's is not known before there is an event, and is then said to be a boolean
    /// (section 3.2), as is that of a call that leads nowhere (section 3.5).
    pub(super) fn returns(&self) -> Type {
        match self {
            Self::Literal(value) => value.ty(),
            Self::Attribute(_) | Self::Exists(_) | Self::Not(_) => Type::Boolean,
            Self::Negate(_) => Type::Integer,
            Self::Call(call) => call.function.map_or(Type::Boolean, |f| f.returns),
            Self::Chain(first, steps) => steps.last().map_or_else(|| first.returns(), Step::returns),
        }
    }
}

/// A call of a function.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Its name, in capitals.
    pub(super) name: String,
    /// The function, if there is one that takes so many arguments.
    pub(super) function: Option<&'static Function>,
    pub(super) arguments: Vec<Expr>,
}

/// What happens to the value so far.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Binary(Operator, Expr),
    Like(Pattern),
    In(Vec<Expr>),
    /// Follows `Like` or `In`, and makes `NOT LIKE` or `NOT IN` of it.
    Not,
}

impl Step {
    fn returns(&self) -> Type {
        match self {
            Self::Binary(operator, _) if matches!(operator.level(), Level::Product | Level::Sum) => Type::Integer,
            _ => Type::Boolean,
        }
    }
}

/// The binary operators of section 3.4.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Multiply,
    Divide,
    Remainder,
    Add,
    Subtract,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    Xor,
}

/// A precedence (section 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// `LIKE` and `IN`.
    Test,
    Product,
    Sum,
    Comparison,
    Logic,
}

/// Every precedence, the tightest first.
pub(super) const LEVELS: [Level; 5] = [Level::Test, Level::Product, Level::Sum, Level::Comparison, Level::Logic];

impl Operator {
    pub(super) fn level(self) -> Level {
        match self {
            Self::Multiply | Self::Divide | Self::Remainder => Level::Product,
            Self::Add | Self::Subtract => Level::Sum,
            Self::Equal | Self::NotEqual | Self::Less | Self::LessOrEqual | Self::Greater | Self::GreaterOrEqual => {
                Level::Comparison
            }
            Self::And | Self::Or | Self::Xor => Level::Logic,
        }
    }
}
