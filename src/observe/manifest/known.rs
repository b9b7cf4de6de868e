//! The names that an expression may use: functions, methods and tables that exist. One that does not would fail with every observation, so it is refused where the
//! expression is compiled.

use rhai::{AST, ASTNode, Expr, Position, Stmt};

use super::near::is_near;

/// A function: its name, how many arguments it takes (the value before the dot is the first of them), and how it is written.
struct Function(&'static str, &'static [usize], &'static str);

/// All functions that there are, in the order of their names.
const FUNCTIONS: &[Function] = &[
    Function("abs", &[1], "n.abs()"),
    Function("all", &[2], "list.all(|x| x > 1)"),
    Function("ceiling", &[1], "n.ceiling()"),
    Function("contains", &[2], "list.contains(x)"),
    Function("ends_with", &[2], "text.ends_with(\"x\")"),
    Function("entries", &[1], "object.entries()"),
    Function("filter", &[2], "list.filter(|x| x > 1)"),
    Function("find", &[2], "list.find(|x| x > 1)"),
    Function("floor", &[1], "n.floor()"),
    Function("is_empty", &[1], "list.is_empty()"),
    Function("join", &[2], "list.join(\"-\")"),
    Function("keys", &[1], "object.keys()"),
    Function("len", &[1], "list.len()"),
    Function("map", &[2], "list.map(|x| x * 10)"),
    Function("max", &[1, 2], "list.max() or max(a, b)"),
    Function("min", &[1, 2], "list.min() or min(a, b)"),
    Function("parse_float", &[1], "text.parse_float()"),
    Function("parse_int", &[1], "text.parse_int()"),
    Function("replace", &[3], "text.replace(\"from\", \"to\")"),
    Function("reverse", &[1], "list.reverse()"),
    Function("round", &[1], "n.round()"),
    Function("some", &[2], "list.some(|x| x > 1)"),
    Function("sort", &[1, 2], "list.sort() or list.sort(|x| x.lag)"),
    Function("split", &[2], "text.split(\",\")"),
    Function("sqrt", &[1], "n.sqrt()"),
    Function("starts_with", &[2], "text.starts_with(\"x\")"),
    Function("sub_string", &[2, 3], "text.sub_string(start) or text.sub_string(start, length)"),
    Function("sum", &[1], "list.sum()"),
    Function("take", &[2], "list.take(3)"),
    Function("to_float", &[1], "n.to_float()"),
    Function("to_int", &[1], "n.to_int()"),
    Function("to_lower", &[1], "text.to_lower()"),
    Function("to_string", &[1], "x.to_string()"),
    Function("to_upper", &[1], "text.to_upper()"),
    Function("trim", &[1], "text.trim()"),
    Function("values", &[1], "object.values()"),
];

/// What other languages call them.
const ALIASES: &[(&str, &[&str])] = &[
    ("all", &["every"]),
    ("ceiling", &["ceil"]),
    ("contains", &["includes", "has", "contains_key", "index_of"]),
    ("len", &["length", "size", "count"]),
    ("some", &["any", "exists"]),
    ("sub_string", &["substring", "substr", "slice", "sub"]),
    ("take", &["first", "head", "limit"]),
    ("to_float", &["float", "as_float"]),
    ("to_int", &["int", "as_int", "trunc", "truncate"]),
    ("to_lower", &["lower", "lowercase", "to_lowercase", "to_lower_case", "make_lower"]),
    ("to_string", &["str", "string", "to_json"]),
    ("to_upper", &["upper", "uppercase", "to_uppercase", "to_upper_case", "make_upper"]),
    ("sort", &["sorted", "order_by", "sort_by"]),
    ("filter", &["where", "select"]),
];

/// The first call of something that is not there, and what to write.
#[allow(clippy::wildcard_enum_match_arm, reason = "the enums are not ours and have dozens of kinds")]
pub(super) fn unknown_function(ast: &AST) -> Option<(String, Position)> {
    first(ast, |node| {
        let (call, at, receiver) = match node {
            ASTNode::Expr(Expr::FnCall(call, at)) | ASTNode::Stmt(Stmt::FnCall(call, at)) => {
                (call, at, false)
            }
            ASTNode::Expr(Expr::MethodCall(call, at)) => (call, at, true),
            _ => return None,
        };
        let name = call.name.as_str();
        // Operators are calls, too, and so is what the parser makes of a closure that uses variables.
        if call.op_token.is_some() || name == "curry" || !name.starts_with(|c: char| c.is_ascii_alphabetic())
        {
            return None;
        }
        let count = call.args.len() + usize::from(receiver);
        match FUNCTIONS.iter().find(|known| known.0 == name) {
            Some(known) if known.1.contains(&count) => None,
            Some(known) => {
                let arguments = if call.args.len() == 1 { "argument" } else { "arguments" };
                let message =
                    format!("found {name} with {} {arguments}, expected {}", call.args.len(), known.2);
                Some((message, *at))
            }
            None => Some((format!("there is no function {name}, {}", suggestion(name)), *at)),
        }
    })
}

/// The first table that is asked for and not there, in an expression that sees `tables`.
#[allow(clippy::wildcard_enum_match_arm, reason = "the enums are not ours and have dozens of kinds")]
pub(super) fn unknown_table(ast: &AST, names: &[&str]) -> Option<(String, Position)> {
    first(ast, |node| {
        let ASTNode::Expr(Expr::Dot(chain, ..) | Expr::Index(chain, ..)) = node else { return None };
        if !matches!(&chain.lhs, Expr::Variable(variable, ..) if variable.1 == "tables") {
            return None;
        }
        // `tables.a.b` is `tables` with all that follows.
        let asked = match &chain.rhs {
            Expr::Dot(rest, ..) | Expr::Index(rest, ..) => &rest.lhs,
            last => last,
        };
        let (name, at) = match asked {
            Expr::Property(property, at) => (property.2.as_str(), *at),
            Expr::StringConstant(text, at) => (text.as_str(), *at),
            _ => return None,
        };
        if names.contains(&name) {
            return None;
        }
        let near = names.iter().find(|known| is_near(known, name));
        let hint = match near {
            Some(near) => format!("did you mean {near}?"),
            None => format!("only {}", names.join(", ")),
        };
        Some((format!("there is no table {name:?}, {hint}"), at))
    })
}

/// What a visitor of the tree finds first, in the order of the text.
fn first(
    ast: &AST,
    mut find: impl FnMut(&ASTNode<'_>) -> Option<(String, Position)>,
) -> Option<(String, Position)> {
    let mut found: Vec<(String, Position)> = Vec::new();
    ast.walk(&mut |path| {
        found.extend(path.last().and_then(&mut find));
        true
    });
    found.into_iter().min_by_key(|(_, at)| (at.line(), at.position()))
}

fn suggestion(name: &str) -> String {
    if ["pow", "log", "ln", "log10", "exp", "sin", "cos", "tan"].contains(&name) {
        return "nor another whose last digit depends on the processor".to_owned();
    }
    let is_alias = |names: &[&str]| names.contains(&name);
    let near = ALIASES
        .iter()
        .find(|(_, names)| is_alias(names))
        .map(|(known, _)| *known)
        .or_else(|| FUNCTIONS.iter().map(|known| known.0).find(|known| is_near(known, name)));
    match near.and_then(|near| FUNCTIONS.iter().find(|known| known.0 == near)) {
        Some(known) => format!("did you mean {}?", known.2),
        None => {
            let names: Vec<&str> = FUNCTIONS.iter().map(|known| known.0).collect();
            format!("only {}", names.join(", "))
        }
    }
}
