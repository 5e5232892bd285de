//! From a tree to a value (sections 3.2 to 3.7).

use super::error::Error;
use super::expression::Attributes;
use super::tree::{Call, Expr, Operator, Step};
use super::value::Value;
use super::work::Work;

/// An error, and what the operator or function in which it arose gives beside it.
pub(super) struct Fault<'a> {
    /// Nothing: the zero value of its type.
    pub(super) value: Option<Value<'a>>,
    pub(super) error: Error,
}

pub(super) type Outcome<'a> = Result<Value<'a>, Fault<'a>>;

impl<'a> Fault<'a> {
    pub(super) fn with(value: Value<'a>, error: Error) -> Self {
        Self { value: Some(value), error }
    }
}

impl From<Error> for Fault<'_> {
    fn from(error: Error) -> Self {
        Self { value: None, error }
    }
}

const OVERFLOW: Error = Error::Math("the result does not fit 32 bits");

/// One evaluation.
pub(super) struct Evaluator<'a> {
    attributes: &'a dyn Attributes,
    work: Work,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(attributes: &'a dyn Attributes) -> Self {
        Self { attributes, work: Work::new() }
    }

    pub(super) fn value(&mut self, expr: &'a Expr) -> Outcome<'a> {
        Ok(match expr {
            Expr::Literal(value) => value.by_ref(),
            Expr::Attribute(name) => {
                self.attributes.get(name).ok_or_else(|| Error::MissingAttribute(name.to_string()))?
            }
            Expr::Exists(name) => Value::Boolean(self.attributes.get(name).is_some()),
            Expr::Not(operand) => Value::Boolean(!self.operand(operand)?.boolean()?),
            Expr::Negate(operand) => {
                let number = self.operand(operand)?.integer(&mut self.work)?;
                Value::Integer(number.checked_neg().ok_or(OVERFLOW)?)
            }
            Expr::Call(call) => self.call(call)?,
            Expr::Chain(first, steps) => {
                let mut left = self.operand(first)?;
                for step in steps {
                    left = self.step(left, step)?;
                }
                left
            }
        })
    }

    /// A value for an operator or function. What stands beside an error is of no use to it.
    fn operand(&mut self, expr: &'a Expr) -> Result<Value<'a>, Error> {
        self.value(expr).map_err(|fault| fault.error)
    }

    fn call(&mut self, call: &'a Call) -> Outcome<'a> {
        let Some(function) = call.function else {
            let (name, arguments) = (call.name.clone(), call.arguments.len());
            return Err(Error::MissingFunction { name, arguments }.into());
        };
        let arguments = call.arguments.iter().map(|a| self.operand(a)).collect::<Result<_, _>>()?;
        function.call(arguments, &mut self.work)
    }

    fn step(&mut self, left: Value<'a>, step: &'a Step) -> Result<Value<'a>, Error> {
        match step {
            Step::Binary(operator, right) => {
                // Where the left operand decides, the right one is not evaluated (section 3.4.2).
                let decided = match operator {
                    Operator::And => !left.boolean()?,
                    Operator::Or => left.boolean()?,
                    _ => false,
                };
                if decided {
                    return Ok(Value::Boolean(*operator == Operator::Or));
                }
                let right = self.operand(right)?;
                binary(left, *operator, right, &mut self.work)
            }
            Step::Like(pattern) => Ok(Value::Boolean(pattern.matches(&left.into_text(), &mut self.work)?)),
            Step::Not => Ok(Value::Boolean(!left.boolean()?)),
            Step::In(set) => {
                let mut found = false;
                for element in set {
                    found |= self.operand(element)?.cast(left.ty(), &mut self.work)? == left;
                }
                Ok(Value::Boolean(found))
            }
        }
    }
}

fn binary<'a>(left: Value<'a>, operator: Operator, right: Value<'a>, work: &mut Work) -> Result<Value<'a>, Error> {
    let mut integers = || Ok((left.integer(work)?, right.integer(work)?));
    let arithmetic = |(x, y), f: fn(i32, i32) -> Option<i32>| f(x, y).map(Value::Integer).ok_or(OVERFLOW);
    let comparison = |(x, y), f: fn(&i32, &i32) -> bool| Value::Boolean(f(&x, &y));
    Ok(match operator {
        Operator::Multiply => arithmetic(integers()?, i32::checked_mul)?,
        Operator::Divide => arithmetic(divisible(integers()?)?, i32::checked_div)?,
        // Of the lowest number and -1 it is 0, which fits although the quotient does not.
        Operator::Remainder => arithmetic(divisible(integers()?)?, |x, y| Some(x.wrapping_rem(y)))?,
        Operator::Add => arithmetic(integers()?, i32::checked_add)?,
        Operator::Subtract => arithmetic(integers()?, i32::checked_sub)?,
        Operator::Less => comparison(integers()?, i32::lt),
        Operator::LessOrEqual => comparison(integers()?, i32::le),
        Operator::Greater => comparison(integers()?, i32::gt),
        Operator::GreaterOrEqual => comparison(integers()?, i32::ge),
        Operator::Equal => Value::Boolean(left.cast(right.ty(), work)? == right),
        Operator::NotEqual => Value::Boolean(left.cast(right.ty(), work)? != right),
        Operator::And => Value::Boolean(left.boolean()? && right.boolean()?),
        Operator::Or => Value::Boolean(left.boolean()? || right.boolean()?),
        Operator::Xor => Value::Boolean(left.boolean()? != right.boolean()?),
    })
}

fn divisible((x, y): (i32, i32)) -> Result<(i32, i32), Error> {
    if y == 0 { Err(Error::Math("division by zero")) } else { Ok((x, y)) }
}
